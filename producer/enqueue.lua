#!lua
-- Enqueue jobs; each enters at most once, whatever is sent again.
--
-- prelude: schemas/lines.lua
-- KEYS[1] aq:waiters, if these jobs are to be cancelled once nobody says any more that somebody waits for them
--         (producer/gateway/waiters.py); no key for all others
-- ARGV[1] batch id, or '' for jobs of no batch
-- then 7 a job: id, record (JSON), priority (I or B), route, workspace, thread id or '', row or ''
--
-- Keys, as in schemas/names.py: aq:job:<id>, aq:result:<id>, aq:batch:<batch>,
-- aq:rows:<batch>, aq:blocked:<batch>, aq:thread:<workspace>:<thread>, and those of the lines.
--
-- Returns one number a job: 1 it is new, 0 it was there before. A new row for a batch that was
-- sealed is an error, and nothing was written: such a batch may have ended already.
-- A row's bit is what makes a resumed submission safe: the job's own keys are gone once it ended.

local FIELDS = 7
local CALLED_OFF = { cancelled = ' was cancelled', expired = ' has expired' }
local batch = ARGV[1]
local total = batch ~= '' and redis.call('HGET', 'aq:batch:' .. batch, 'total')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local replies, new = {}, 0
local joining, lines = {}, {}

for i = 2, #ARGV, FIELDS do
  local id, record, priority, route = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local workspace, thread, row = ARGV[i + 4], ARGV[i + 5], ARGV[i + 6]
  local job = 'aq:job:' .. id
  local known = redis.call('EXISTS', job, 'aq:result:' .. id) > 0
  if batch ~= '' then
    if total and not known and redis.call('GETBIT', 'aq:rows:' .. batch, row) == 0 then
      local why = CALLED_OFF[batch_called_off_as(batch)] or ' is closed with ' .. total .. ' jobs'
      return redis.error_reply('batch ' .. batch .. why .. '; send more as another batch')
    end
    known = redis.call('SETBIT', 'aq:rows:' .. batch, row, 1) == 1 or known
  end
  if known then
    replies[#replies + 1] = 0
  else
    local state = 'waiting'
    local fields = { 'record', record, 'epoch', 0, 'priority', priority, 'route', route, 'enqueued_ms', now_ms }
    if thread ~= '' then
      fields[#fields + 1], fields[#fields + 2] = 'thread', workspace .. ':' .. thread
      if redis.call('RPUSH', 'aq:thread:' .. workspace .. ':' .. thread, id) > 1 then
        state = 'blocked'
        if batch ~= '' then
          redis.call('SADD', 'aq:blocked:' .. batch, id)
        end
      end
    end
    if batch ~= '' then
      fields[#fields + 1], fields[#fields + 2] = 'batch', batch
    end
    redis.call('HSET', job, 'state', state, unpack(fields))
    if KEYS[1] then
      redis.call('ZADD', KEYS[1], now_ms, id)
    end
    if state == 'waiting' then
      local line = line_name(priority, batch, route)
      if not joining[line] then
        joining[line] = {}
        lines[#lines + 1] = line
      end
      table.insert(joining[line], id)
    end
    new = new + 1
    replies[#replies + 1] = 1
  end
end

for _, line in ipairs(lines) do
  local ids = joining[line]
  if redis.call('RPUSH', 'aq:line:' .. line, unpack(ids)) == #ids then
    register_line(line)
  end
end
if batch ~= '' and new > 0 then
  redis.call('HINCRBY', 'aq:batch:' .. batch, 'enqueued', new)
end
redis.call('PUBLISH', 'aq:wake', 'enqueued')
return replies
