#!lua flags=allow-oom
-- Put a running job back to wait.
--
-- prelude: schemas/lines.lua
-- prelude: worker/spend/reservation.lua
-- KEYS[1] aq:job:<id>  KEYS[2] aq:snoozed
-- ARGV[1] id, ARGV[2] epoch, ARGV[3] wait in ms, ARGV[4] attempts to add (0 or 1),
-- ARGV[5] '1' to keep the job's whole lane waiting for as long
--
-- A job of a lane that waits goes back to its line's head; any other waits in aq:snoozed for
-- sweep.lua. Returns 1, or 0 when the job is somebody else's.

-- A job that was called off need not wait for its provider, but may have to for SQL.
local CALLED_OFF_WAIT_MS = 5000

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'route', 'called_off', 'batch', 'enqueued_ms')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return 0
end
local wait_ms = tonumber(ARGV[3])
if called_off_as(job[4], job[5], job[3], job[6]) then
  wait_ms = math.min(wait_ms, CALLED_OFF_WAIT_MS)
end
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + wait_ms
if ARGV[4] ~= '0' then
  redis.call('HINCRBY', KEYS[1], 'attempts', ARGV[4])
end
end_reservation(ARGV[1])
end_lease(ARGV[1], job[3])
if ARGV[5] == '1' or wait_ms <= 0 then
  if ARGV[5] == '1' and wait_ms > 0 then
    park_lane(lane_of(job[3]), until_ms)
  end
  rejoin_line(ARGV[1])
else
  redis.call('HSET', KEYS[1], 'state', 'snoozed')
  redis.call('ZADD', KEYS[2], until_ms, ARGV[1])
end
return 1
