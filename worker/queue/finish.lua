#!lua flags=allow-oom
-- End a job, once: count it in its batch, free its thread, keep its result, tell who waits.
--
-- prelude: schemas/lines.lua
-- prelude: worker/spend/reservation.lua
-- KEYS[1] aq:job:<id>  KEYS[2] aq:journal:<id>  KEYS[3] aq:result:<id>
-- ARGV[1] id, ARGV[2] epoch, ARGV[3] final status, ARGV[4] result (JSON), ARGV[5] seconds to keep it,
-- ARGV[6] requests, ARGV[7] prompt tokens, ARGV[8] completion tokens, ARGV[9] what they cost in nanos,
-- ARGV[10] seconds to keep what was told of it in parts, '' for as long as they have
--
-- Also aq:parts:<id>, aq:batch:<batch>, aq:blocked:<batch>, aq:ending, aq:thread:<workspace>:<thread>, aq:waiters, and those of the lines.
-- Returns 1 when it ended here or had ended before, 0 when the job is somebody else's.
-- Runs after the SQL commit: a crash in between leaves the job to be claimed again, and the
-- second settling finds the row in SQL.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'batch', 'thread', 'route')
if not job[1] then
  return redis.call('EXISTS', KEYS[3])
end
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[5])
end_reservation(ARGV[1])
redis.call('DEL', KEYS[1], KEYS[2])
if ARGV[10] ~= '' then
  redis.call('EXPIRE', 'aq:parts:' .. ARGV[1], ARGV[10])
end
local lane = lane_of(job[5])
if redis.call('ZREM', 'aq:entering:' .. lane, ARGV[1]) == 1 then
  -- It never asked the limiter, so there is room for another one in its place.
  redis.call('ZADD', 'aq:parked', 'XX', 0, lane)
end
end_lease(ARGV[1], job[5])

if job[4] then
  local thread = 'aq:thread:' .. job[4]
  redis.call('LREM', thread, 1, ARGV[1])
  local next_id = redis.call('LINDEX', thread, 0)
  local next_job = next_id and redis.call('HMGET', 'aq:job:' .. next_id, 'state', 'batch')
  if next_job and next_job[1] == 'blocked' then
    if next_job[2] then
      redis.call('SREM', 'aq:blocked:' .. next_job[2], next_id)
    end
    rejoin_line(next_id)
    redis.call('PUBLISH', 'aq:wake', 'thread')
  end
end

if job[3] then
  local batch = 'aq:batch:' .. job[3]
  redis.call('HINCRBY', batch, ARGV[3], 1)
  for i, count in ipairs({ 'requests', 'prompt_tokens', 'completion_tokens', 'cost_nano' }) do
    if ARGV[5 + i] ~= '0' then
      redis.call('HINCRBY', batch, count, ARGV[5 + i])
    end
  end
  local finished = redis.call('HINCRBY', batch, 'finished', 1)
  local total = redis.call('HGET', batch, 'total')
  if total and finished >= tonumber(total) then
    redis.call('SADD', 'aq:ending', job[3])
    redis.call('PUBLISH', 'aq:wake', 'ending')
  end
else
  redis.call('ZREM', 'aq:waiters', ARGV[1])
end

redis.call('PUBLISH', 'aq:done:' .. ARGV[1], ARGV[3])
return 1
