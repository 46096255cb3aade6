-- Enqueue jobs; each enters at most once, whatever is sent again.
--
-- prelude: schemas/lines.lua
-- ARGV[1] batch id, or '' for jobs of no batch
-- then 7 a job: id, record (JSON), priority (I or B), route, workspace, thread id or '', row or ''
--
-- Keys, as in schemas/names.py: aq:job:<id>, aq:result:<id>, aq:batch:<batch>,
-- aq:rows:<batch>, aq:thread:<workspace>:<thread>, and those of the lines.
--
-- Returns one number a job: 1 it is new, 0 it was there before. A new row for a batch that was
-- sealed is an error, and nothing was written: such a batch may have ended already.
-- A row's bit is what makes a resumed submission safe: the job's own keys are gone once it ended.

local FIELDS = 7
local batch = ARGV[1]
local total = batch ~= '' and redis.call('HGET', 'aq:batch:' .. batch, 'total')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local replies, new = {}, 0

for i = 2, #ARGV, FIELDS do
  local id, record, priority, route = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local workspace, thread, row = ARGV[i + 4], ARGV[i + 5], ARGV[i + 6]
  local job = 'aq:job:' .. id
  local known = redis.call('EXISTS', job, 'aq:result:' .. id) > 0
    or (batch ~= '' and redis.call('GETBIT', 'aq:rows:' .. batch, row) == 1)
  if not known and total then
    if redis.call('HEXISTS', 'aq:batch:' .. batch, 'cancelled_ms') == 1 then
      return redis.error_reply('batch ' .. batch .. ' was cancelled; send more as another batch')
    end
    return redis.error_reply('batch ' .. batch .. ' is closed with ' .. total .. ' jobs; send more as another batch')
  end
  if batch ~= '' then
    redis.call('SETBIT', 'aq:rows:' .. batch, row, 1)
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
      end
    end
    if batch ~= '' then
      fields[#fields + 1], fields[#fields + 2] = 'batch', batch
    end
    redis.call('HSET', job, 'state', state, unpack(fields))
    if state == 'waiting' then
      join_line(line_name(priority, batch, route), id, false)
    end
    new = new + 1
    replies[#replies + 1] = 1
  end
end

if batch ~= '' and new > 0 then
  redis.call('HINCRBY', 'aq:batch:' .. batch, 'enqueued', new)
end
redis.call('PUBLISH', 'aq:wake', 'enqueued')
return replies
