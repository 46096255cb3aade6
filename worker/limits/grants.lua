-- What changes a lane: charges, refunds, tickets. Stands between turns.lua and each script of the limiter.
--
-- A script opens a lane, changes it by these functions, and closes it, which writes.

-- A process that is not among the workers is taken to be new for this long, and dead afterwards.
local GRACE_US = 5000000

local function open(lane, limits)
  local s = read(lane, clock())
  s.limits = limits or s.limits
  if s.kept_us == 0 then
    -- New, or a part of it was evicted: what the rest says is of no use.
    redis.call('DEL', s.cells_key, s.tickets_key, s.held_key)
  end
  if apply_limits(s) then
    forget(s)
  end
  return s
end

local function held(s, id)
  local raw = redis.call('HGET', s.held_key, id)
  if not raw then
    return nil
  end
  local state, tokens, cell, at_us, expires_us, process =
    string.match(raw, '^(%a+) (%d+) (%d+) (%d+) (%d+) (.+)$')
  return { id = id, state = state, tokens = tonumber(tokens), cell = tonumber(cell),
    at_us = tonumber(at_us), expires_us = tonumber(expires_us), process = process }
end

local function hold(s, r)
  redis.call('HSET', s.held_key, r.id,
    string.format('%s %.0f %.0f %.0f %.0f %s', r.state, r.tokens, r.cell, r.at_us, r.expires_us, r.process))
  s.put = true
end

-- A bucket cannot be more than full: what is given back late may have flowed back already. How
-- much of it has not is the least backlog of the bucket that a grant has met since. So each bucket
-- keeps its floors: the cells in which the backlog was lower than ever after.
local function note_floor(s, field, backlog_us)
  local cell = floor(s.now_us / CELL_US)
  if backlog_us <= 0 then
    s[field] = cmsgpack.pack({ cell, 0 })
    return
  end
  local floors = s[field] and cmsgpack.unpack(s[field]) or {}
  while #floors > 0 and floors[#floors] >= backlog_us do
    floors[#floors], floors[#floors - 1] = nil, nil
  end
  if floors[#floors - 1] == cell then
    return
  end
  floors[#floors + 1], floors[#floors + 2] = cell, backlog_us
  if #floors > 2 * FLOORS then
    -- Two become one, the lower at the time of the later: too little may be given back, never too much.
    local best, gap_us = 2, math.huge
    for i = 2, #floors - 2, 2 do
      if floors[i + 2] - floors[i] < gap_us then
        best, gap_us = i, floors[i + 2] - floors[i]
      end
    end
    floors[best - 1] = table.remove(floors, best + 1)
    table.remove(floors, best + 1)
  end
  s[field] = cmsgpack.pack(floors)
end

-- What of an amount that was charged at `at_us` the bucket still owes, and takes back.
local function take_back(s, field, at_us, amount_us)
  local floors = s[field] and cmsgpack.unpack(s[field]) or {}
  local cell, first = floor(at_us / CELL_US), nil
  for i = 1, #floors, 2 do
    if floors[i] > cell then
      first = first or i
      if i == first then
        amount_us = min(amount_us, floors[i + 1])
      end
      floors[i + 1] = floors[i + 1] - amount_us
    end
  end
  if first then
    local kept = {}
    for i = 1, #floors, 2 do
      if i >= first or floors[i + 1] < floors[first + 1] then
        kept[#kept + 1], kept[#kept + 2] = floors[i], floors[i + 1]
      end
    end
    s[field] = cmsgpack.pack(kept)
  end
  return floor(amount_us)
end

-- Charge one request and its tokens now; returns the cell that holds them.
local function charge(s, tokens)
  if s.request_us > 0 then
    local full_us, tokens_full_us = max(s.requests_tat_us, s.empty_us), max(s.tokens_tat_us, s.empty_us)
    note_floor(s, 'requests_floors', full_us - s.now_us)
    note_floor(s, 'tokens_floors', tokens_full_us - s.now_us)
    -- Rounded so that the pace is never faster than the limit's.
    s.requests_tat_us = ceil(max(full_us, s.now_us) + s.request_us)
    s.tokens_tat_us = ceil(max(tokens_full_us, s.now_us) + tokens * s.token_us)
  end
  s.requests, s.tokens = s.requests + 1, s.tokens + tokens
  local any = s.made_cells > s.gone_cells
  local newest = any and floor(s.newest_us / CELL_US) == floor(s.now_us / CELL_US)
    and redis.call('LINDEX', s.cells_key, -1)
  if newest then
    local requests, before = string.match(newest, ' (%d+) (%d+)$')
    redis.call('LSET', s.cells_key, -1, string.format('%.0f %.0f %.0f', s.now_us, requests + 1, before + tokens))
  else
    redis.call('RPUSH', s.cells_key, string.format('%.0f 1 %.0f', s.now_us, tokens))
    s.made_cells = s.made_cells + 1
    s.new_cells = not any
  end
  if s.made_cells - s.gone_cells == 1 then
    s.oldest_gone_us = s.now_us + WINDOW_US
  end
  s.newest_us = s.now_us
  return s.made_cells - 1
end

-- Returns whether the cell is there: the server may have evicted the ledger.
local function add_to_cell(s, index, requests, tokens)
  local cell = redis.call('LINDEX', s.cells_key, index)
  if not cell then
    return false
  end
  local last_us, had, had_tokens = string.match(cell, '^(%d+) (%d+) (%d+)$')
  redis.call('LSET', s.cells_key, index, string.format('%s %.0f %.0f', last_us, had + requests, had_tokens + tokens))
  return true
end

-- A call that was sent late leaves the provider's window late: charge it to a later cell of the ledger.
local function postpone(s, r, late_us)
  if r.cell < s.gone_cells or r.cell >= s.made_cells then
    return
  end
  local index = r.cell - s.gone_cells
  local sent_us, to, last_us = min(r.at_us + late_us, s.now_us), index, nil
  repeat
    local cell = redis.call('LINDEX', s.cells_key, to)
    if not cell then
      return
    end
    last_us = tonumber(string.match(cell, '^%d+'))
    to = to + 1
  until last_us >= sent_us or to >= s.made_cells - s.gone_cells
  if last_us < sent_us then
    redis.call('RPUSH', s.cells_key, string.format('%.0f 0 0', s.now_us))
    s.made_cells, s.newest_us, to = s.made_cells + 1, s.now_us, to + 1
  end
  add_to_cell(s, index, -1, -r.tokens)
  add_to_cell(s, to - 1, 1, r.tokens)
  r.cell = s.gone_cells + to - 1
end

-- Change what a grant was charged by so many requests and tokens.
local function correct(s, r, requests, tokens)
  local in_ledger = r.cell >= s.gone_cells and r.cell < s.made_cells
  if in_ledger and add_to_cell(s, r.cell - s.gone_cells, requests, tokens) then
    s.requests, s.tokens = s.requests + requests, s.tokens + tokens
  end
  if s.request_us > 0 then
    if requests < 0 then
      s.requests_tat_us = s.requests_tat_us - take_back(s, 'requests_floors', r.at_us, -requests * s.request_us)
    end
    if tokens < 0 then
      s.tokens_tat_us = s.tokens_tat_us - take_back(s, 'tokens_floors', r.at_us, -tokens * s.token_us)
    elseif tokens > 0 then
      s.tokens_tat_us = ceil(max(s.tokens_tat_us, s.now_us) + tokens * s.token_us)
    end
  end
  s.freed = s.freed or requests < 0 or tokens < 0
end

-- Whether as many calls are in flight as may be, not counting so many of them.
local function is_full_but(s, count)
  return s.most > 0 and redis.call('HLEN', s.held_key) - s.waiting - count >= s.most
end

local function is_full(s)
  return is_full_but(s, 0)
end

local function ticket_of(r)
  return string.format('%.0f %s', r.tokens, r.id)
end

-- Count a ticket that was put into the line.
local function join(s, tokens)
  s.new_tickets = s.waiting == 0
  s.waiting, s.waiting_tokens = s.waiting + 1, s.waiting_tokens + tokens
end

-- Who stands first may have been told a later time than is now his: he asks again, and hears the new one.
local function hurry(s, id, at_us)
  local r = held(s, id)
  if r and r.at_us > at_us + HURRY_US then
    r.at_us = at_us
    hold(s, r)
    redis.call('PUBLISH', 'aq:turns:' .. r.process, id)
  end
end

-- Grant what is due to those who wait, in their order, and tell who would sleep on.
local function advance(s)
  local left = GRANTS_AT_ONCE
  while s.waiting > 0 and left > 0 do
    local ticket = redis.call('LINDEX', s.tickets_key, 0)
    if not ticket then
      s.waiting, s.waiting_tokens = 0, 0
      return
    end
    local tokens, id = string.match(ticket, '^(%d+) (.+)$')
    tokens = tonumber(tokens)
    local never = tokens > s.tpm
    if not never then
      if is_full(s) then
        return
      end
      local at_us = turn(s, 0, 0, tokens)
      if at_us > s.now_us then
        if s.freed or left < GRANTS_AT_ONCE then
          hurry(s, id, at_us)
        end
        return
      end
    end
    redis.call('LPOP', s.tickets_key)
    s.waiting, s.waiting_tokens, left = s.waiting - 1, s.waiting_tokens - tokens, left - 1
    local r = held(s, id)
    if r and never then
      -- The limits have become lower: its owner asks anew, and is told.
      redis.call('HDEL', s.held_key, id)
      redis.call('PUBLISH', 'aq:turns:' .. r.process, id)
    elseif r then
      local told_us = r.at_us
      r.state, r.cell, r.at_us = 'granted', charge(s, tokens), s.now_us
      r.expires_us = max(s.now_us, told_us) + CONFIRM_US
      hold(s, r)
      if told_us > s.now_us + SOON_US then
        redis.call('PUBLISH', 'aq:turns:' .. r.process, id)
      end
    end
  end
end

-- Take out who waits, or was granted and has not sent; returns whether there was anything to take out.
local function give_back(s, r)
  if r.state == 'waiting' then
    if redis.call('LREM', s.tickets_key, 1, ticket_of(r)) == 1 then
      s.waiting, s.waiting_tokens = s.waiting - 1, s.waiting_tokens - r.tokens
    end
    s.freed = true
  else
    correct(s, r, -1, -r.tokens)
  end
  redis.call('HDEL', s.held_key, r.id)
end

-- Let go of a call that has ended, or is lost: what it was charged stays.
local function let_go(s, r)
  redis.call('HDEL', s.held_key, r.id)
  s.freed = s.freed or (s.most or 0) > 0
end

local function close(s)
  local need_us = max(s.now_us + (s.hold_us or 0), s.cool_until_us, s.requests_tat_us, s.tokens_tat_us,
    s.told_until_us) + WINDOW_US + SPARE_US
  local renew = s.kept_us < need_us
  if renew then
    s.kept_us = need_us + 2 * SPARE_US
  end
  local changes = { 'state', packed(s) }
  local function change(field, value)
    changes[#changes + 1], changes[#changes + 2] = field, value
  end
  if s.limits ~= s.old_limits then
    change('limits', s.limits)
  end
  if s.requests_floors ~= s.old_requests_floors then
    change('requests_floors', s.requests_floors)
  end
  if s.tokens_floors ~= s.old_tokens_floors then
    change('tokens_floors', s.tokens_floors)
  end
  if s.cool_until_us ~= s.old_cool_until_us then
    change('cool_until_us', whole(s.cool_until_us))
  end
  redis.call('HSET', s.key, unpack(changes))
  local keep_ms = ceil((s.kept_us - s.now_us) / 1000)
  if renew then
    redis.call('PEXPIRE', s.key, keep_ms)
  end
  if renew or s.new_cells then
    redis.call('PEXPIRE', s.cells_key, keep_ms)
  end
  if renew or s.new_tickets then
    redis.call('PEXPIRE', s.tickets_key, keep_ms)
  end
  local first = s.put and redis.call('HLEN', s.held_key) == 1
  if renew or first then
    redis.call('PEXPIRE', s.held_key, keep_ms)
  end
  if first then
    redis.call('ZADD', 'aq:limited', 'NX', whole(s.now_us - s.offset_us), s.lane)
  end
  if s.freed then
    redis.call('ZADD', 'aq:parked', 'XX', 0, s.lane)
  end
end
