#!lua flags=allow-oom
-- Let one request of an API key pass, or say when one may (GCRA: a bucket of as many requests as the key may
-- make in a minute, which fills evenly). Who is refused is not counted.
--
-- KEYS[1] aq:rpm:<key>: the time, in us on the server's clock, at which the bucket is full again; gone then
-- ARGV[1] requests a minute
--
-- Returns 0, the request may pass; or the us after which it may.

local MINUTE_US = 60000000

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local full_us = tonumber(redis.call('GET', KEYS[1]) or now_us)
-- A clock that was set back must not close the key for longer than a minute.
full_us = math.min(math.max(full_us, now_us), now_us + MINUTE_US)
full_us = full_us + MINUTE_US / ARGV[1]

local wait_us = math.ceil(full_us - MINUTE_US - now_us)
if wait_us > 0 then
  return wait_us
end
redis.call('SET', KEYS[1], string.format('%.0f', full_us), 'PX', math.ceil((full_us - now_us) / 1000))
return 0
