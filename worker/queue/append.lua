#!lua flags=allow-oom
-- Append a finished step to a job's journal, if the job is still the caller's.
--
-- KEYS[1] aq:job:<id>  KEYS[2] aq:journal:<id>
-- ARGV[1] epoch, ARGV[2] the step (JSON), ARGV[3] its index from 0, or -1 for "at the end"
--
-- Returns 1 when it stands in the journal, 2 when it does and the job or its batch was cancelled, 0
-- when the job is somebody else's. A step that stands there already is not appended twice: the
-- reply to the first call may have been lost. Without an index that is told by an equal last step.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'batch', 'cancelled')
if job[1] ~= 'running' or job[2] ~= ARGV[1] then
  return 0
end
local index = tonumber(ARGV[3])
local missing = index >= 0 and redis.call('LLEN', KEYS[2]) == index
if missing or (index < 0 and redis.call('LINDEX', KEYS[2], -1) ~= ARGV[2]) then
  redis.call('RPUSH', KEYS[2], ARGV[2])
end
local cancelled = job[4] or job[3] and redis.call('HEXISTS', 'aq:batch:' .. job[3], 'cancelled_ms') == 1
return cancelled and 2 or 1
