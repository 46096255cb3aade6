#!lua flags=allow-oom
-- Tell how many jobs a worker process can run at once, and that it lives.
--
-- KEYS[1] aq:workers   ARGV[1] process, ARGV[2] capacity, ARGV[3] ms after which it counts as gone
--
-- Also while the server's memory is full: who could not say that it lives would lose its calls.

local time = redis.call('TIME')
local expires_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', expires_ms))
