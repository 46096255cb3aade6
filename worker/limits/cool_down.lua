-- Keep a lane from being granted anything for a while; the longer of two cool-downs wins.
--
-- KEYS[1] aq:limit:<lane>   ARGV[1] ms

local time = redis.call('TIME')
local until_us = time[1] * 1000000 + time[2] + tonumber(ARGV[1]) * 1000
if until_us > tonumber(redis.call('HGET', KEYS[1], 'cool_until_us') or '0') then
  redis.call('HSET', KEYS[1], 'cool_until_us', string.format('%.0f', until_us))
  redis.call('PEXPIRE', KEYS[1], math.max(300000, tonumber(ARGV[1]) + 60000))
end
return 1
