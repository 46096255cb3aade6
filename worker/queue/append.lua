#!lua flags=allow-oom
-- Append a finished step to a job's journal, if the job is still the caller's.
--
-- prelude: schemas/lines.lua
-- prelude: worker/spend/reservation.lua
-- KEYS[1] aq:job:<id>  KEYS[2] aq:journal:<id>
-- ARGV[1] epoch, ARGV[2] the step (JSON), ARGV[3] its index from 0, or -1 for "at the end"
-- ARGV[4] id, ARGV[5] what the step cost in nanos, or '' if it is no call's, ARGV[6] the account that pays for it
--
-- Returns '' when it stands in the journal; why the job or its batch was called off (cancelled, expired,
-- over_budget) when it does and there should be no other step; 0 when the job is somebody else's. A step that
-- stands there already is not appended twice: the reply to the first call may have been lost. Without an index
-- that is told by an equal last step.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'batch', 'called_off')
if job[1] ~= 'running' or job[2] ~= ARGV[1] then
  return 0
end
local index = tonumber(ARGV[3])
local missing = index >= 0 and redis.call('LLEN', KEYS[2]) == index
if missing or (index < 0 and redis.call('LINDEX', KEYS[2], -1) ~= ARGV[2]) then
  redis.call('RPUSH', KEYS[2], ARGV[2])
  -- Here and only here a cost becomes spent, so that it is once.
  if ARGV[5] ~= '' and not end_reservation(ARGV[4], ARGV[5]) and ARGV[5] ~= '0' then
    open_account(ARGV[6])
    redis.call('HINCRBY', ARGV[6], 'spent_nano', ARGV[5])
  end
end
return called_off_as(job[4], job[3]) or ''
