#!lua flags=allow-oom
-- Close a batch to new rows: its total is what was enqueued. Sealing twice is a no-op.
--
-- KEYS[1] aq:batch:<batch>   ARGV[1] batch id, ARGV[2] rows that were sent. Also aq:rows:<batch>,
-- aq:ending, aq:batches, aq:expiring.
--
-- Returns the total; an error, and the batch stays open, if rows that were sent are not here: the server
-- died meanwhile, before they were on its disk. A batch whose jobs have all ended already goes to aq:ending here;
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
local missing = tonumber(ARGV[2]) - redis.call('BITCOUNT', 'aq:rows:' .. ARGV[1])
if missing > 0 then
  return redis.error_reply('the server lost ' .. missing .. ' rows of batch ' .. ARGV[1] .. ', as it does when it '
    .. 'dies before they are on its disk; send the same rows again under the same batch id')
end
total = tonumber(redis.call('HGET', KEYS[1], 'enqueued') or '0')
redis.call('HSET', KEYS[1], 'total', total)
if tonumber(redis.call('HGET', KEYS[1], 'finished') or '0') >= total then
  redis.call('SADD', 'aq:ending', ARGV[1])
  redis.call('PUBLISH', 'aq:wake', 'ending')
end
return total
