-- Correct a reservation to what was used, or give it back.
--
-- KEYS[1] aq:limit:<lane> (reserve.lua)  KEYS[2] aq:faults
-- ARGV[1] second of the reservation's turn, ARGV[2] used minus reserved tokens,
-- ARGV[3] used minus reserved requests: 0, or -1 for a call that was never sent,
-- ARGV[4] us that a request takes to come back, ARGV[5] us that a token does,
-- ARGV[6] lane if its fault is over, or ''
--
-- More used than reserved leaves the bucket in debt; less gives the rest back.

local function correct(tat, kind, amount, each_us)
  local tat_us = redis.call('HGET', KEYS[1], tat)
  if tat_us and amount ~= 0 then
    redis.call('HSET', KEYS[1], tat, string.format('%.0f', tonumber(tat_us) + amount * each_us))
    -- A second that is more than a minute past is no longer there, nor needed.
    if redis.call('HEXISTS', KEYS[1], kind .. ARGV[1]) == 1 then
      redis.call('HINCRBY', KEYS[1], kind .. ARGV[1], string.format('%.0f', amount))
    end
  end
end

correct('tokens_tat_us', 't', tonumber(ARGV[2]), tonumber(ARGV[5]))
correct('requests_tat_us', 'r', tonumber(ARGV[3]), tonumber(ARGV[4]))
if ARGV[6] ~= '' then
  redis.call('HDEL', KEYS[2], ARGV[6])
end
return 1
