-- Look at how much of their limits the lanes with calls waiting or in flight have used. Changes nothing.
--
-- ARGV[1] most lanes to look at; keys: turns.lua
--
-- Returns per lane: its name, requests of the last minute and its limit of them, tokens and limit,
-- calls in flight, calls that wait for their turn.

local reports = {}
for _, lane in ipairs(redis.call('ZRANGE', 'aq:limited', 0, ARGV[1] - 1)) do
  local s = read(lane, clock())
  if apply_limits(s) then
    local free, free_tokens = window_room(s, s.now_us, math.huge, math.huge)
    reports[#reports + 1] = { lane, whole(s.rpm - free), whole(s.rpm), whole(s.tpm - free_tokens), whole(s.tpm),
      redis.call('HLEN', s.held_key) - s.waiting, whole(s.waiting) }
  end
end
return reports
