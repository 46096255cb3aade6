-- Append a finished step to a job's journal, if the job is still the caller's.
--
-- prelude: schemas/lines.lua
-- KEYS[1] aq:job:<id>  KEYS[2] aq:journal:<id>
-- ARGV[1] epoch, ARGV[2] the step (JSON), ARGV[3] its index from 0, or -1 for "at the end"
--
-- Returns '' when it stands in the journal, why the job or its batch was called off (cancelled, expired,
-- over_budget) when it does and there should be no other step, 0 when the job is somebody else's. A step that stands there already is not appended twice: the
-- reply to the first call may have been lost. Without an index that is told by an equal last step.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'batch', 'called_off')
if job[1] ~= 'running' or job[2] ~= ARGV[1] then
  return 0
end
local index = tonumber(ARGV[3])
local missing = index >= 0 and redis.call('LLEN', KEYS[2]) == index
if missing or (index < 0 and redis.call('LINDEX', KEYS[2], -1) ~= ARGV[2]) then
  redis.call('RPUSH', KEYS[2], ARGV[2])
end
return called_off_as(job[4], job[3]) or ''
