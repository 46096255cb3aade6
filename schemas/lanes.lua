-- Look at the lanes that have waiting jobs, those of paused batches too, or that somebody paused. Changes nothing.
--
-- prelude: schemas/lines.lua
-- ARGV[1] most lanes to look at
--
-- Returns per lane: its name, interactive jobs that wait, other jobs that wait, when the oldest
-- job at a line's head was enqueued (ms; '' if none waits), jobs that were released and have not
-- asked the limiter yet, '1' if it is paused.

local room = tonumber(ARGV[1])
local seen, report = {}, {}

-- Lines of paused batches, by the lane that they will go back to.
local set_aside = {}
for _, line in ipairs(lines_of_paused_batches()) do
  local _, _, route = line_parts(line)
  local lane = lane_of(route)
  set_aside[lane] = set_aside[lane] or {}
  table.insert(set_aside[lane], line)
end

local function look_at(lane)
  if seen[lane] or room <= 0 then
    return
  end
  seen[lane] = true
  room = room - 1
  local waiting, oldest_ms = { I = 0, B = 0 }, nil
  local function count(line)
    local key, priority = 'aq:line:' .. line, line_parts(line)
    waiting[priority] = waiting[priority] + redis.call('LLEN', key)
    local head = redis.call('LINDEX', key, 0)
    local since_ms = head and tonumber(redis.call('HGET', 'aq:job:' .. head, 'enqueued_ms') or '')
    if since_ms and since_ms < (oldest_ms or math.huge) then
      oldest_ms = since_ms
    end
  end
  for _, priority in ipairs(PRIORITIES) do
    for _, line in ipairs(redis.call('ZRANGE', 'aq:lines:' .. priority .. ':' .. lane, 0, -1)) do
      count(line)
    end
  end
  for _, line in ipairs(set_aside[lane] or {}) do
    count(line)
  end
  report[#report + 1] = {
    lane,
    waiting.I,
    waiting.B,
    oldest_ms and string.format('%.0f', oldest_ms) or '',
    redis.call('ZCARD', 'aq:entering:' .. lane),
    redis.call('SISMEMBER', 'aq:paused', lane) == 1 and '1' or '',
  }
end

for _, workspace in ipairs(redis.call('ZRANGE', 'aq:ring', 0, room - 1)) do
  for _, priority in ipairs(PRIORITIES) do
    for _, lane in ipairs(redis.call('ZRANGE', 'aq:lanes:' .. priority .. ':' .. workspace, 0, room)) do
      look_at(lane)
    end
  end
end
for _, lane in ipairs(redis.call('ZRANGE', 'aq:parked', 0, room)) do
  look_at(lane)
end
for _, lane in ipairs(redis.call('SMEMBERS', 'aq:paused')) do
  look_at(lane)
end
for lane in pairs(set_aside) do
  look_at(lane)
end
return report
