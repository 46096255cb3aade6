-- Close a batch to new rows: its total is what was enqueued. Sealing twice is a no-op.
--
-- KEYS[1] aq:batch:<batch>   ARGV[1] batch id. Also aq:ending, aq:batches, aq:expiring.
--
-- Returns the total. A batch whose jobs have all ended already goes to aq:ending here;
-- otherwise worker/queue/finish.lua puts it there with its last job.

local total = redis.call('HGET', KEYS[1], 'total')
if total then
  if redis.call('HEXISTS', KEYS[1], 'state') == 1 then
    -- It had ended: opening it again has put it back on the lists.
    redis.call('ZREM', 'aq:batches', ARGV[1])
    redis.call('ZREM', 'aq:expiring', ARGV[1])
  end
  return tonumber(total)
end
total = tonumber(redis.call('HGET', KEYS[1], 'enqueued') or '0')
redis.call('HSET', KEYS[1], 'total', total)
if tonumber(redis.call('HGET', KEYS[1], 'finished') or '0') >= total then
  redis.call('SADD', 'aq:ending', ARGV[1])
  redis.call('PUBLISH', 'aq:wake', 'ending')
end
return total
