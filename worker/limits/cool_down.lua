-- Grant nothing of a lane for a while; the longer of two cool-downs wins. Those who wait keep their order.
--
-- ARGV[1] lane, ARGV[2] us; keys: turns.lua

-- A lane that was refused has nothing saved up: at the end there is this much at once, no more.
local START_US = 1000000

local s = open(ARGV[1])
local until_us = s.now_us + tonumber(ARGV[2])
if until_us > s.cool_until_us then
  s.cool_until_us = until_us
  if s.rpm and s.request_us > 0 then
    local empty_us = until_us + max(0, s.burst_us - START_US)
    s.requests_tat_us, s.tokens_tat_us = max(s.requests_tat_us, empty_us), max(s.tokens_tat_us, empty_us)
    note_floor(s, 'requests_floors', 0)
    note_floor(s, 'tokens_floors', 0)
  end
end
close(s)
return 1
