-- Reserve one request and some tokens of a lane, both or neither, in the order of asking.
--
-- KEYS[1] aq:limit:<lane>, a hash: `requests_tat_us`, `tokens_tat_us` (see below), `cool_until_us`
-- ARGV[1] requests a minute, ARGV[2] tokens a minute, ARGV[3] burst in s, ARGV[4] tokens wanted,
-- ARGV[5] horizon in ms: a turn that is further away is not reserved
--
-- Two token buckets in the form of a generic cell rate algorithm: a bucket is kept as the time
-- (microseconds, "tat") at which it would be full. A grant may lie in the future; the caller
-- sleeps until then, and later callers queue up behind it, so nobody is overtaken and nobody polls.
--
-- A grant of cost C (in time units) comes no earlier than tat - burst + C and moves tat to at least
-- the grant plus C. So what was granted in any 60 s is at most 60 s + burst, in time units; one minute's
-- limit is made worth just that, and no rolling minute sees more than the limit. The same rule lets a
-- request through that is larger than the bucket: it waits for a full bucket and longer, and leaves a debt.
-- Only that extra wait, which is due to its own size, may go beyond the horizon: otherwise small
-- requests would starve it.
--
-- Returns {1, wait_ms} when reserved, {0, wait_ms} when the turn lies beyond the horizon,
-- {-1, 0} when more tokens are wanted than a minute has.

local rpm, tpm, burst_s = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens, horizon_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

if tokens > tpm then
  return { -1, 0 }
end

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[1], 'requests_tat_us', 'tokens_tat_us', 'cool_until_us')
local burst_us = burst_s * 1000000

local minute_us = (60 + burst_s) * 1000000
local request_cost_us = minute_us / rpm
local token_cost_us = tokens * minute_us / tpm
local requests_tat_us = tonumber(state[1] or '0')
local tokens_tat_us = tonumber(state[2] or '0')

local at_us = math.max(now_us, tonumber(state[3] or '0'),
  requests_tat_us - burst_us + request_cost_us, tokens_tat_us - burst_us + token_cost_us)
local wait_ms = math.ceil((at_us - now_us) / 1000)
local own_ms = math.max(0, token_cost_us - burst_us, request_cost_us - burst_us) / 1000
if wait_ms - own_ms > horizon_ms then
  return { 0, wait_ms }
end

redis.call('HSET', KEYS[1],
  'requests_tat_us', string.format('%.0f', math.max(requests_tat_us, at_us) + request_cost_us),
  'tokens_tat_us', string.format('%.0f', math.max(tokens_tat_us, at_us) + token_cost_us))
-- An idle lane's buckets are full again after this; a cool-down outlasts it only if it says so.
if redis.call('PTTL', KEYS[1]) < 300000 then
  redis.call('PEXPIRE', KEYS[1], 300000)
end
return { 1, wait_ms }
