-- How a batch is called off: what of it waits ends without a call, what runs at its next step.
--
-- A prelude, after schemas/lines.lua. It touches, beside the keys of the lines:
--   aq:batch:<batch>    `<reason>_ms`, when it was called off (REASONS); `paused_ms`; `total`
--   aq:blocked:<batch>  its jobs that are blocked by their threads
--   aq:snoozed          its jobs come back at the next sweep
--   aq:ending           batches whose last job ended

-- Most snoozed jobs to look through for those of the batch; others end when their wait does.
local SNOOZED_AT_MOST = 20000

-- A batch whose last job has ended is over, even if its row is still to be written.
local function is_over(batch)
  local counts = redis.call('HMGET', 'aq:batch:' .. batch, 'total', 'finished', 'state', 'created_ms')
  return counts[3] or not counts[4] or (counts[1] and tonumber(counts[2] or '0') >= tonumber(counts[1]))
end

-- Let the batch's snoozed jobs come back at once.
local function end_snoozes(batch)
  for _, id in ipairs(redis.call('ZRANGE', 'aq:snoozed', 0, SNOOZED_AT_MOST - 1)) do
    if redis.call('HGET', 'aq:job:' .. id, 'batch') == batch then
      redis.call('ZADD', 'aq:snoozed', 0, id)
    end
  end
end

-- A batch that is called off takes no more rows: its total is what was enqueued.
local function close_batch(batch)
  local key = 'aq:batch:' .. batch
  local counts = redis.call('HMGET', key, 'total', 'enqueued', 'finished')
  if not counts[1] then
    redis.call('HSET', key, 'total', counts[2] or 0)
    if tonumber(counts[3] or '0') >= tonumber(counts[2] or '0') then
      redis.call('SADD', 'aq:ending', batch)
    end
  end
end

-- Call a batch that is not over off for one of REASONS. What called it off first stands. One that has spent
-- its cap still takes rows, which end as over_budget: each row of a file has its result.
local function call_off_batch(batch, reason, now_ms)
  if not batch_called_off_as(batch) then
    redis.call('HSET', 'aq:batch:' .. batch, reason .. '_ms', now_ms)
  end
  redis.call('HDEL', 'aq:batch:' .. batch, 'paused_ms')
  for _, line in ipairs(redis.call('SMEMBERS', 'aq:linesof:' .. batch)) do
    drain_line(line)
  end
  if redis.call('EXISTS', 'aq:blocked:' .. batch) == 1 then
    redis.call('SADD', 'aq:draining', BLOCKED .. batch)
  end
  end_snoozes(batch)
  if reason ~= 'over_budget' then
    close_batch(batch)
  end
end
