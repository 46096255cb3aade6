-- The turns of a lane: what every script of the limiter begins with, and release.lua of admission.
--
-- This file holds local functions only. A script is this text followed by its own: a chunk may
-- define what it does with a lane, and all of them agree on what a lane is.
--
-- Keys of a lane. All of them are written together and expire together, when the lane has been
-- idle long enough to be as good as new:
--
--   aq:limit:<lane>    hash, see `read` below
--   aq:cells:<lane>    list, the ledger of the rolling window, oldest first: `<last_us> <requests>
--                      <tokens>`, what was granted within the same CELL_US, and when the last of it
--                      was. The n-th cell that the lane ever had stands at index n - gone_cells.
--   aq:tickets:<lane>  list, who waits, first come first served: `<tokens> <id>`
--   aq:held:<lane>     hash, who waits or has been granted: id -> `<state> <tokens> <cell> <at_us>
--                      <expires_us> <process>`; <state> is one of
--                        waiting  has a ticket; at_us is the turn that the waiter was told
--                        granted  was granted while its owner slept, who has not heard of it yet;
--                                 at_us is when. Given back at expires_us: it was certainly not sent
--                        sent     its owner knows, and calls; at expires_us it no longer counts
--                                 as in flight, but keeps its tokens
--
-- and of all lanes together:
--
--   aq:limited         zset, lanes with anything in aq:held by when expire.lua looks at them next
--   aq:workers         hash, process -> `<capacity> <expires_ms>`: who is not there is dead
--   aq:parked          zset of admission: lanes that wait for room, by when it is expected (read
--                      and written with XX only)
--   aq:entering:<lane> zset of admission: jobs that were released and have not asked yet
--   aq:turns:<process> channel: ids whose owners are to ask again: their turn comes, or has come,
--                      earlier than they were told
--
-- Time is logical: the server's, in microseconds, plus the lane's offset_us. When the server's
-- clock is set back the offset grows by as much, so that a lane's time never runs backwards.
--
-- A grant is charged when it is made, never ahead. Two rules, and it meets both:
--   pace    one bucket for requests, one for tokens, each kept as the time at which it would be
--           full again (a generic cell rate algorithm). A call that is larger than the bucket waits
--           for a full one and leaves a debt.
--   window  no rolling WINDOW_US holds more than a minute's limit, whatever was settled since.
-- Which of them hold for a lane, and how, stands in its `limits`.

local MINUTE_US = 60000000
-- A call reaches the provider, and ends there, this much earlier or later than our clock says.
local JITTER_US = 250000
local WINDOW_US = MINUTE_US + JITTER_US
-- What lies closer together than this shares a cell of the ledger.
local CELL_US = 50000
-- A grant is confirmed within this long after its owner was to wake, or it is given back.
local CONFIRM_US = 5000000
-- A grant that its owner confirms later than this after it was made is dated anew.
local LATE_US = JITTER_US / 2
-- A waiter that was granted and wakes by itself within this long needs no message, nor does the
-- first in the line whose turn has come nearer by less than that.
local SOON_US, HURRY_US = 5000, 10000
-- Nothing tells when a call in flight will end: who waits for that asks again after this long.
local SLOT_RETRY_US = 1000000
-- How many jobs of a lane may enter before its first one has told the limits.
local UNKNOWN_JOBS = 64
-- Most grants that one call of a script makes for others, and most floors that a bucket keeps.
local GRANTS_AT_ONCE, FLOORS = 128, 16
-- The keys outlast what they hold by this; they are renewed once they no longer do.
local SPARE_US = 60000000

local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function whole(number)
  return string.format('%.0f', number)
end

-- The hash of a lane has these fields; the first two are numbers, packed: reading and writing
-- them by name would be most of what a script costs.
--   limits            what the lane may do, as it was last told by who asks, see `apply_limits`
--   state             see `read`
--   cool_until_us     nothing is granted before; who deletes it ends the cool-down
--   requests_floors,  cmsgpack of { cell, backlog, cell, backlog, ... }, see `note_floor`
--   tokens_floors
local LIMITS, STATE = '<ddddddd', '<ddddddddddddddddd'
-- A lane that cooled down has nothing saved up: at the end there is this much at once, no more.
local START_US = 1000000

-- The lane as it stands, at the server's time; nothing is written.
local function read(lane, server_us)
  local s = { lane = lane, key = 'aq:limit:' .. lane, cells_key = 'aq:cells:' .. lane,
    tickets_key = 'aq:tickets:' .. lane, held_key = 'aq:held:' .. lane }
  local raw = redis.call('HMGET', s.key, 'limits', 'state', 'requests_floors', 'tokens_floors', 'cool_until_us')
  s.limits, s.requests_floors, s.tokens_floors = raw[1], raw[3], raw[4]
  s.old_limits, s.old_requests_floors, s.old_tokens_floors = raw[1], raw[3], raw[4]
  s.offset_us,                                  -- added to the server's time
    s.seen_us,                                  -- the largest time that was ever seen
    s.requests_tat_us, s.tokens_tat_us,         -- when the buckets would be full again
    s.requests, s.tokens,                       -- the sums of the ledger's cells
    s.gone_cells, s.made_cells,                 -- cells that have left the ledger, that ever entered it
    s.oldest_gone_us,                           -- when the oldest cell leaves
    s.newest_us,                                -- the last charge of the newest
    s.waiting, s.waiting_tokens,                -- tickets, and their tokens
    s.avg_tokens,                               -- of the calls that were asked for last
    s.told_rpm, s.told_tpm, s.told_until_us,    -- limits that the provider told, 0 if not lower than ours
    s.kept_us                                   -- when the keys expire
    = struct.unpack(STATE, raw[2] or string.rep('\0', struct.size(STATE)))
  s.cool_until_us = tonumber(raw[5]) or 0
  s.old_cool_until_us = s.cool_until_us
  s.now_us = server_us + s.offset_us
  if s.now_us < s.seen_us then
    s.offset_us = s.offset_us + s.seen_us - s.now_us
    s.now_us = s.seen_us
  end
  s.seen_us = s.now_us
  return s
end

local function packed(s)
  return struct.pack(STATE, s.offset_us, s.seen_us, s.requests_tat_us, s.tokens_tat_us,
    s.requests, s.tokens, s.gone_cells, s.made_cells, s.oldest_gone_us, s.newest_us,
    s.waiting, s.waiting_tokens, s.avg_tokens, s.told_rpm, s.told_tpm, s.told_until_us, s.kept_us)
end

-- Make the lane's limits ready; false while nobody has told them.
local function apply_limits(s)
  if not s.limits then
    return false
  end
  local pace_us, window
  s.rpm, s.tpm,    -- what a minute may have
    s.burst_us,    -- how much of it at once, in the time in which that flows back
    pace_us,       -- the time in which all of a minute's limit flows back; 0 if nothing is paced
    window,        -- 1 if the window is guarded
    s.most,        -- most calls in flight, 0 for any number
    s.hold_us      -- after how long a call counts as lost
    = struct.unpack(LIMITS, s.limits)
  s.own_tpm = s.tpm
  if s.told_until_us > s.now_us then
    s.rpm = s.told_rpm > 0 and min(s.rpm, s.told_rpm) or s.rpm
    s.tpm = s.told_tpm > 0 and min(s.tpm, s.told_tpm) or s.tpm
  end
  s.window = window == 1
  -- Until when the buckets count as empty.
  s.empty_us = s.cool_until_us > 0 and s.cool_until_us + max(0, s.burst_us - START_US) or 0
  s.request_us, s.token_us = pace_us / s.rpm, pace_us / s.tpm
  return true
end

-- Drop the cells that have left the window. Each is dropped once: the cost is that of its making.
local function forget(s)
  while s.gone_cells < s.made_cells and s.oldest_gone_us <= s.now_us do
    local oldest = s.newest_us + WINDOW_US > s.now_us and redis.call('LPOP', s.cells_key)
    local after = oldest and redis.call('LINDEX', s.cells_key, 0)
    if not after then
      redis.call('DEL', s.cells_key)
      s.gone_cells, s.requests, s.tokens = s.made_cells, 0, 0
      return
    end
    local requests, tokens = string.match(oldest, ' (%d+) (%d+)$')
    s.gone_cells = s.gone_cells + 1
    s.requests, s.tokens = s.requests - requests, s.tokens - tokens
    s.oldest_gone_us = string.match(after, '^%d+') + WINDOW_US
  end
end

-- When enough cells have left that so many requests and tokens more than now fit the window.
local function window_turn(s, requests, tokens)
  local excess, excess_tokens = s.requests + requests - s.rpm, s.tokens + tokens - s.tpm
  local at_us, index = s.now_us, 0
  while excess > 0 or excess_tokens > 0 do
    local cells = redis.call('LRANGE', s.cells_key, index, index + 63)
    if #cells == 0 then
      -- Only what is still to be granted will make room: as fast as the limit allows.
      return max(s.now_us, at_us) + WINDOW_US * max(excess / s.rpm, excess_tokens / s.tpm)
    end
    index = index + #cells
    for _, cell in ipairs(cells) do
      local last_us, held, held_tokens = string.match(cell, '^(%d+) (%d+) (%d+)$')
      excess, excess_tokens = excess - held, excess_tokens - held_tokens
      at_us = last_us + WINDOW_US
      if excess <= 0 and excess_tokens <= 0 then
        break
      end
    end
  end
  return at_us
end

-- How many requests and tokens the window has room for by then, as far as so many are wanted.
local function window_room(s, until_us, wanted, wanted_tokens)
  if s.newest_us + WINDOW_US <= until_us then
    return s.rpm, s.tpm
  end
  local free, free_tokens, index = s.rpm - s.requests, s.tpm - s.tokens, 0
  while free < min(wanted, s.rpm) or free_tokens < min(wanted_tokens, s.tpm) do
    local cells = redis.call('LRANGE', s.cells_key, index, index + 63)
    index = index + #cells
    for _, cell in ipairs(cells) do
      local last_us, held, held_tokens = string.match(cell, '^(%d+) (%d+) (%d+)$')
      if last_us + WINDOW_US > until_us then
        return free, free_tokens
      end
      free, free_tokens = free + held, free_tokens + held_tokens
    end
    if #cells == 0 then
      break
    end
  end
  return free, free_tokens
end

-- When a call of so many tokens may be made behind so many others. Exact for the next call; for
-- later ones never too late, as long as nothing is given back.
local function turn(s, ahead, ahead_tokens, tokens)
  local from_us = max(s.now_us, s.cool_until_us)
  local at_us = max(from_us,
    max(from_us, s.requests_tat_us, s.empty_us) + ahead * s.request_us - max(0, s.burst_us - s.request_us),
    max(from_us, s.tokens_tat_us, s.empty_us) + ahead_tokens * s.token_us - max(0, s.burst_us - tokens * s.token_us))
  if s.window and (s.requests + ahead + 1 > s.rpm or s.tokens + ahead_tokens + tokens > s.tpm) then
    at_us = max(at_us, window_turn(s, ahead + 1, ahead_tokens + tokens))
  end
  return ceil(at_us)
end

-- How many more jobs of the lane's average size get their turn within the horizon, behind those
-- who wait and `entering` more; if none does, after how many us one would; and that average, in
-- tokens (nil: not known). Writes nothing.
local function lane_room(lane, now_us, horizon_us, entering)
  local s = read(lane, now_us)
  local until_us = s.now_us + horizon_us
  local size = max(1, s.avg_tokens)
  if s.cool_until_us > until_us then
    return 0, s.cool_until_us - until_us, size
  end
  if not apply_limits(s) then
    return max(0, UNKNOWN_JOBS - entering), entering < UNKNOWN_JOBS and 0 or 100000, nil
  end
  size = min(size, s.tpm)
  local jobs = math.huge
  if s.most > 0 then
    jobs = s.most - redis.call('HLEN', s.held_key) - entering
    if jobs <= 0 then
      return 0, SLOT_RETRY_US, size
    end
  end
  local ahead, ahead_tokens = s.waiting + entering, s.waiting_tokens + entering * size
  local next_us = turn(s, ahead, ahead_tokens, size)
  if next_us > until_us then
    return 0, next_us - until_us, size
  end
  local from_us = max(s.now_us, s.cool_until_us)
  local function paced(tat_us, each_us, taken_us)
    local left_us = until_us + max(0, s.burst_us - each_us) - max(from_us, tat_us, s.empty_us) - taken_us
    return each_us > 0 and floor(left_us / each_us) + 1 or math.huge
  end
  jobs = min(jobs, paced(s.requests_tat_us, s.request_us, ahead * s.request_us),
    paced(s.tokens_tat_us, size * s.token_us, ahead_tokens * s.token_us))
  if s.window then
    local free, free_tokens = window_room(s, until_us, ahead + jobs, ahead_tokens + jobs * size)
    jobs = min(jobs, free - ahead, floor((free_tokens - ahead_tokens) / size))
  end
  return max(1, jobs), 0, size
end
