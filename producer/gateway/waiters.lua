#!lua flags=allow-oom
-- Say that somebody waits for these jobs, and ask for which ones nobody has said so for as long as a lease.
--
-- KEYS[1] aq:waiters: job -> when that was said last, ms; a job enters it with its enqueue (producer/enqueue.lua)
-- ARGV[1] lease in ms, then the ids of jobs that are waited for
--
-- A job that left the set, because it ended or was cancelled, is not put back. A clock that was set back takes
-- the times with it that are still to come. Returns {now in ms, {id, …}}.

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local told = {}
for i = 2, #ARGV do
  told[#told + 1] = now_ms
  told[#told + 1] = ARGV[i]
end
if #told > 0 then
  redis.call('ZADD', KEYS[1], 'XX', unpack(told))
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now_ms, '+inf')) do
  redis.call('ZADD', KEYS[1], now_ms, id)
end
return { now_ms, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms - tonumber(ARGV[1])) }
