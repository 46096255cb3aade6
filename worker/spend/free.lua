#!lua flags=allow-oom
-- End the reservation of a call that was certainly not charged.
--
-- prelude: schemas/lines.lua
-- prelude: worker/spend/reservation.lua
-- ARGV[1] id, ARGV[2] epoch
--
-- Of a job that is somebody else's by now, whoever took it has ended it.

local job = redis.call('HMGET', 'aq:job:' .. ARGV[1], 'state', 'epoch')
if job[1] == 'running' and job[2] == ARGV[2] then
  end_reservation(ARGV[1], 0)
end
