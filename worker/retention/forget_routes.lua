-- Forget which lanes these routes meet, if no job of theirs is out or waits in a line.
--
-- prelude: schemas/lines.lua
-- ARGV routes of which no job was found a moment ago
--
-- Touches aq:routes, and reads aq:leases, aq:job:<id> and the lines. Returns how many were forgotten.
--
-- A line is registered under its route's lane, and who is out entered there: both would be looked for under
-- another name. Where a job has come since and snoozes already, or is blocked by its thread, nothing stands
-- under the lane's name: the route is found again when the job meets its lane (meet.lua).

local used = {}
for _, id in ipairs(redis.call('ZRANGE', 'aq:leases', 0, -1)) do
  used[redis.call('HGET', 'aq:job:' .. id, 'route') or ''] = true
end
for _, line in ipairs(lines_of_paused_batches()) do
  local _, _, route = line_parts(line)
  used[route] = true
end

local looked = {}
local function look_at_lines(lane)
  if looked[lane] then
    return
  end
  looked[lane] = true
  for _, priority in ipairs(PRIORITIES) do
    for _, line in ipairs(redis.call('ZRANGE', 'aq:lines:' .. priority .. ':' .. lane, 0, -1)) do
      local _, _, route = line_parts(line)
      used[route] = true
    end
  end
end

local forgotten = 0
for _, route in ipairs(ARGV) do
  local lane = redis.call('HGET', 'aq:routes', route)
  if lane then
    look_at_lines(lane)
    if not used[route] then
      forgotten = forgotten + redis.call('HDEL', 'aq:routes', route)
    end
  end
end
return forgotten
