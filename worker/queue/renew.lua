#!lua flags=allow-oom
-- Renew the leases of running jobs.
--
-- KEYS[1] aq:leases   ARGV[1] lease in ms, then id, epoch, id, epoch, …
--
-- Returns the ids that are no longer the caller's.

local time = redis.call('TIME')
local expires_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
local lost = {}
for i = 2, #ARGV, 2 do
  local job = redis.call('HMGET', 'aq:job:' .. ARGV[i], 'state', 'epoch')
  if job[1] == 'running' and job[2] == ARGV[i + 1] then
    redis.call('ZADD', KEYS[1], 'XX', expires_ms, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
