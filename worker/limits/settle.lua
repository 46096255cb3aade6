#!lua flags=allow-oom
-- End a reservation: correct it to what was used, or give it back. Once: a second time does nothing.
--
-- ARGV[1] lane, ARGV[2] id of the reservation, ARGV[3] tokens used, -1 if the call was certainly not
-- sent, ARGV[4] 1 if the lane's fault is over, ARGV[5] us that the call may have been sent later than
-- its turn; keys: turns.lua, and aq:faults
--
-- Returns 1 if there was anything to end. More used than reserved leaves the bucket in debt.

local lane, used = ARGV[1], tonumber(ARGV[3])
if ARGV[4] == '1' then
  redis.call('HDEL', 'aq:faults', lane)
end
local s = open(lane)
local r = held(s, ARGV[2])
if not r or not s.rpm then
  return 0
end
if used < 0 or r.state == 'waiting' then
  give_back(s, r)
else
  if tonumber(ARGV[5]) > LATE_US then
    postpone(s, r, tonumber(ARGV[5]))
  end
  correct(s, r, 0, used - r.tokens)
  let_go(s, r)
end
advance(s)
close(s)
return 1
