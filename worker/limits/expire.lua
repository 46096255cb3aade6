#!lua flags=allow-oom
-- Free what dead processes left, and what was granted and never confirmed. Every process calls this
-- every second or so; a lane is looked at once a second by one of them.
--
-- ARGV[1] most lanes to look at; keys: turns.lua
--
-- Returns how many tickets and reservations were freed.

local LOOK_EVERY_US = 1000000
-- Of a lane with more than this only a part is looked at each time.
local RECORDS = 1000

-- After so long without a look nobody could tell that he lives: all get this long to do so.
local AWAY_US, BACK_US = 4000000, 8000000

local server_us = clock()
local looked = redis.call('HMGET', 'aq:expiry', 'looked_us', 'from_us')
local from_us = tonumber(looked[2] or '0')
if math.abs(server_us - tonumber(looked[1] or server_us)) > AWAY_US then
  from_us = server_us + BACK_US
  redis.call('HSET', 'aq:expiry', 'from_us', whole(from_us))
end
redis.call('HSET', 'aq:expiry', 'looked_us', whole(server_us))
if server_us < from_us and from_us - server_us <= BACK_US then
  return 0
end
local lanes = redis.call('ZRANGEBYSCORE', 'aq:limited', '-inf', whole(server_us), 'LIMIT', 0, ARGV[1])
-- Later than anyone would write: the server's clock was set back.
for _, lane in ipairs(redis.call('ZRANGEBYSCORE', 'aq:limited', whole(server_us + 2 * LOOK_EVERY_US), '+inf',
  'LIMIT', 0, ARGV[1])) do
  lanes[#lanes + 1] = lane
end
if #lanes == 0 then
  return 0
end

local expires_us = {}
local workers = redis.call('HGETALL', 'aq:workers')
for i = 1, #workers, 2 do
  expires_us[workers[i]] = 1000 * (string.match(workers[i + 1], ' (%d+)$') or 0)
end

local function is_dead(s, r)
  local known = expires_us[r.process]
  if known then
    return known < server_us
  end
  local new_until_us = r.state == 'waiting' and r.expires_us or r.at_us + GRACE_US
  return new_until_us < s.now_us
end

local freed = 0
for _, lane in ipairs(lanes) do
  local s = open(lane)
  if not s.rpm then
    redis.call('DEL', s.held_key, s.tickets_key)
  else
    local cursor = redis.call('HGET', s.key, 'looked_to') or '0'
    local page = redis.call('HSCAN', s.held_key, cursor, 'COUNT', RECORDS)
    if page[1] ~= cursor then
      redis.call('HSET', s.key, 'looked_to', page[1])
    end
    for i = 1, #page[2], 2 do
      local r = held(s, page[2][i])
      local over = r and r.state ~= 'waiting' and r.expires_us < s.now_us
      if r and (over or is_dead(s, r)) then
        if r.state == 'sent' then
          let_go(s, r)
        else
          give_back(s, r)
        end
        freed = freed + 1
      end
    end
    advance(s)
    close(s)
  end
  if redis.call('EXISTS', s.held_key) == 1 then
    redis.call('ZADD', 'aq:limited', whole(server_us + LOOK_EVERY_US), lane)
  else
    redis.call('ZREM', 'aq:limited', lane)
  end
end
return freed
