-- Put a running job back to wait.
--
-- KEYS[1] aq:job:<id>  KEYS[2] aq:leases  KEYS[3] aq:snoozed
-- ARGV[1] id, ARGV[2] epoch, ARGV[3] wait in ms, ARGV[4] attempts to add (0 or 1),
-- ARGV[5] '1' to hold the job's whole line for as long
--
-- A job of a held line goes back to the line's head; any other waits in aq:snoozed for
-- sweep.lua. Of two holds the longer wins. Returns 1, or 0 when the job is somebody else's.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'line')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return 0
end
local wait_ms = tonumber(ARGV[3])
redis.call('HINCRBY', KEYS[1], 'attempts', ARGV[4])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[5] == '1' or wait_ms <= 0 then
  redis.call('HSET', KEYS[1], 'state', 'waiting')
  redis.call('LPUSH', 'aq:line:' .. job[3], ARGV[1])
  if redis.call('SADD', 'aq:lines:in', job[3]) == 1 then
    redis.call('RPUSH', 'aq:lines', job[3])
  end
  if wait_ms > 0 and redis.call('PTTL', 'aq:hold:' .. job[3]) < wait_ms then
    redis.call('SET', 'aq:hold:' .. job[3], ARGV[1], 'PX', wait_ms)
  end
else
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[1], 'state', 'snoozed')
  redis.call('ZADD', KEYS[3], now_ms + wait_ms, ARGV[1])
end
return 1
