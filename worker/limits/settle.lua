-- Correct a reservation to what was used.
--
-- KEYS[1] aq:limit:<lane>  KEYS[2] aq:faults
-- ARGV[1] tokens a minute, ARGV[2] burst in s, ARGV[3] used minus reserved tokens,
-- ARGV[4] lane if its fault is over, or '', ARGV[5] requests to give back, ARGV[6] requests a minute
--
-- More used than reserved leaves the bucket in debt; less gives the rest back.

local function shift(field, amount, per_minute)
  local tat_us = redis.call('HGET', KEYS[1], field)
  if tat_us and amount ~= 0 then
    local cost_us = amount * (60 + tonumber(ARGV[2])) * 1000000 / tonumber(per_minute)
    redis.call('HSET', KEYS[1], field, string.format('%.0f', tonumber(tat_us) + cost_us))
  end
end

shift('tokens_tat_us', tonumber(ARGV[3]), ARGV[1])
shift('requests_tat_us', -tonumber(ARGV[5]), ARGV[6])
if ARGV[4] ~= '' then
  redis.call('HDEL', KEYS[2], ARGV[4])
end
return 1
