-- Reserve one request and some tokens of a lane, both or neither, in the order of asking.
--
-- KEYS[1] aq:limit:<lane>, a hash:
--   `requests_tat_us`, `tokens_tat_us`   when each bucket would be full again
--   `last_us`                            the turn that was granted last
--   `cool_until_us`                      nothing is granted before (cool_down.lua)
--   `r<second>`, `t<second>`             requests and tokens whose turn lies in that second
-- ARGV[1] requests a minute, ARGV[2] tokens a minute, ARGV[3] burst in us, ARGV[4] tokens wanted,
-- ARGV[5] horizon in us: a turn that is further away is not reserved,
-- ARGV[6] us that a request takes to come back, ARGV[7] us that a token does
--
-- Two rules, and a turn meets both. The buckets (a generic cell rate algorithm) pace: what is
-- wanted comes at an even rate, up to a burst at once; what is larger than the burst waits for a
-- full bucket and leaves a debt. The seconds guard: no 60 s hold more than a minute's limit,
-- whatever was settled or given back meanwhile. 60 s touch at most 61 whole seconds, so these
-- are what is summed.
--
-- A turn may lie in the future; the caller sleeps until then, and later callers queue up behind
-- it, so nobody is overtaken and nobody polls. Whether a turn lies too far away is judged by the
-- smallest request's: otherwise small requests would starve a large one, which waits longer.
--
-- Returns {1, wait in ms, second of the turn} when reserved, {0, wait in ms, 0} when the turn
-- lies beyond the horizon, {-1, 0, 0} when more tokens are wanted than a minute has.

local rpm, tpm, burst_us = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens, horizon_us = tonumber(ARGV[4]), tonumber(ARGV[5])
local request_us, token_us = tonumber(ARGV[6]), tonumber(ARGV[7])
local SECONDS, SECOND_US = 61, 1000000

if tokens > tpm then
  return { -1, 0, 0 }
end

local time = redis.call('TIME')
local now_us = time[1] * SECOND_US + time[2]

local state, held, seconds = {}, {}, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local kind, second = string.match(fields[i], '^([rt])(%d+)$')
  second = tonumber(second)
  if not kind then
    state[fields[i]] = tonumber(fields[i + 1])
  elseif (second + SECONDS) * SECOND_US <= now_us then
    redis.call('HDEL', KEYS[1], fields[i])
  else
    if not held[second] then
      held[second] = { r = 0, t = 0 }
      seconds[#seconds + 1] = second
    end
    held[second][kind] = tonumber(fields[i + 1])
  end
end
table.sort(seconds)
local requests_tat_us, tokens_tat_us = state.requests_tat_us or 0, state.tokens_tat_us or 0

local function turn_of(wanted)
  local at_us = math.max(now_us, state.cool_until_us or 0, state.last_us or 0,
    requests_tat_us - math.max(0, burst_us - request_us),
    tokens_tat_us - math.max(0, burst_us - wanted * token_us))
  local requests, spent = 1, wanted
  for _, second in ipairs(seconds) do
    requests, spent = requests + held[second].r, spent + held[second].t
  end
  for _, second in ipairs(seconds) do
    local gone_us = (second + SECONDS) * SECOND_US
    if at_us < gone_us then
      if requests <= rpm and spent <= tpm then
        break
      end
      at_us = gone_us
    end
    requests, spent = requests - held[second].r, spent - held[second].t
  end
  return at_us
end

if turn_of(1) - now_us > horizon_us then
  return { 0, math.ceil((turn_of(tokens) - now_us) / 1000), 0 }
end
local wait_ms = math.ceil((turn_of(tokens) - now_us) / 1000)
local at_us = now_us + wait_ms * 1000
local second = math.floor(at_us / SECOND_US)

redis.call('HSET', KEYS[1], 'last_us', string.format('%.0f', at_us),
  'requests_tat_us', string.format('%.0f', math.max(requests_tat_us, at_us) + request_us),
  'tokens_tat_us', string.format('%.0f', math.max(tokens_tat_us, at_us) + tokens * token_us))
redis.call('HINCRBY', KEYS[1], string.format('r%.0f', second), 1)
redis.call('HINCRBY', KEYS[1], string.format('t%.0f', second), tokens)
-- An idle lane has forgotten everything after this; a cool-down outlasts it only if it says so.
if redis.call('PTTL', KEYS[1]) < 300000 then
  redis.call('PEXPIRE', KEYS[1], 300000)
end
return { 1, wait_ms, second }
