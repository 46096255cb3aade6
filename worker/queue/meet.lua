-- Tell which lane the jobs of a route meet; its lines move there.
--
-- prelude: schemas/lines.lua
-- ARGV[1] route, ARGV[2] lane, ARGV[3] id of the job that found out
--
-- A route's lane is known once one of its jobs was prepared, and changes when its assistant
-- does. Returns 1.

local route, lane = ARGV[1], ARGV[2]
local before = lane_of(route)
redis.call('ZREM', 'aq:entering:' .. before, ARGV[3])
if before == lane then
  return 1
end
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
return 1
