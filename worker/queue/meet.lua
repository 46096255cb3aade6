#!lua flags=allow-oom
-- Tell which lane the jobs of a route meet; its lines move there.
--
-- prelude: schemas/lines.lua
-- prelude: worker/limits/turns.lua
-- prelude: worker/admission/room.lua
-- ARGV[1] route, ARGV[2] lane, ARGV[3] id of the job that found out, ARGV[4] horizon in us,
-- ARGV[5] ms within which the job asks the limiter
--
-- A route's lane is known once one of its jobs was prepared, and changes when its assistant
-- does. Called by each job that was let out under another lane's name. Returns 1 if the job may go
-- on, 0 if the lane that it met is paused or has no room: it was let out before anybody knew, and
-- should go back to its line.

local route, lane, id = ARGV[1], ARGV[2], ARGV[3]
local now_us = clock()
local before = lane_of(route)
redis.call('ZREM', 'aq:entering:' .. before, id)
redis.call('ZREM', 'aq:entering:?' .. route, id)

local function move_lines()
  redis.call('HSET', 'aq:routes', route, lane)
  local left = false
  for _, priority in ipairs(PRIORITIES) do
    local lines = 'aq:lines:' .. priority .. ':' .. before
    for _, line in ipairs(redis.call('ZRANGE', lines, 0, -1)) do
      local _, _, its_route = line_parts(line)
      if its_route == route then
        redis.call('ZREM', lines, line)
        register_line(line)
      else
        left = true
      end
    end
  end
  if not left then
    shut_lane(before)
    redis.call('ZREM', 'aq:parked', before)
  end
  redis.call('PUBLISH', 'aq:wake', 'met')
end

if before ~= lane then
  move_lines()
end
if is_shut(lane) or room_of(lane, now_us, tonumber(ARGV[4])) < 1 then
  return 0
end
enter(lane, id, math.floor(now_us / 1000), tonumber(ARGV[5]))
return 1
