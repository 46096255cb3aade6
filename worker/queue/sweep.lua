#!lua flags=allow-oom
-- Return jobs to their lines: those whose lease has ended, and those whose wait is over.
--
-- prelude: schemas/lines.lua
-- prelude: worker/spend/reservation.lua
-- KEYS[1] aq:leases  KEYS[2] aq:snoozed  KEYS[3] aq:swept, when the last sweep was
-- ARGV[1] most jobs of each kind to move now, ARGV[2] lease in ms
--
-- Nobody could renew a lease while this server was away. So after a time without any sweep every
-- lease is given once more, also one that has not ended yet: a worker finds the server back only at its
-- next try, and keeps its calls in flight.
-- A clock that was set back takes every time that is kept here with it.
--
-- A job whose lease ended gets a higher epoch at once, so that whatever its lost worker still
-- wants to write is refused. If it was running, its worker died with it, or could not renew for as
-- long: that is counted (`deaths`). Returns {recovered, due}.

local SET_BACK_MS = 1000
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local swept_ms = tonumber(redis.call('GET', KEYS[3]) or now_ms)
redis.call('SET', KEYS[3], now_ms)
if now_ms < swept_ms - SET_BACK_MS then
  -- A lease lasts no longer than this from now; one that was given since then is left alone.
  local longest_ms = now_ms + tonumber(ARGV[2])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. longest_ms, '+inf')) do
    redis.call('ZADD', KEYS[1], longest_ms, id)
  end
  for _, times in ipairs({ KEYS[2], 'aq:parked' }) do
    for _, member in ipairs(redis.call('ZRANGE', times, 0, -1)) do
      redis.call('ZINCRBY', times, now_ms - swept_ms, member)
    end
  end
  for _, off in ipairs(redis.call('KEYS', 'aq:off:*')) do
    redis.call('SET', off, redis.call('GET', off) + now_ms - swept_ms, 'KEEPTTL')
  end
elseif now_ms - swept_ms > tonumber(ARGV[2]) / 3 then
  local until_ms = now_ms + tonumber(ARGV[2])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', until_ms)) do
    redis.call('ZADD', KEYS[1], until_ms, id)
  end
end

local recovered = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, ARGV[1])
for i = #recovered, 1, -1 do -- each goes to the head of its line, so the first one comes last
  local job = 'aq:job:' .. recovered[i]
  local state = redis.call('HGET', job, 'state')
  if state then
    redis.call('HINCRBY', job, 'epoch', 1)
    end_reservation(recovered[i])
    if state == 'running' then
      redis.call('HINCRBY', job, 'deaths', 1)
    end
    rejoin_line(recovered[i])
  else
    redis.call('ZREM', KEYS[1], recovered[i])
  end
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', 'aq:places')
end

local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, ARGV[1])
for i = #due, 1, -1 do
  redis.call('ZREM', KEYS[2], due[i])
  rejoin_line(due[i])
end
return { #recovered, #due }
