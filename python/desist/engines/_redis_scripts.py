"""The operations of RedisEngine on the server: Lua scripts, each of which is atomic.

KEYS[1] is the stream; all other keys begin with its name.
"""

import re

GROUP = "desist"

# Answers of a settlement. Below 0: the lease was over, and this is the state of the item; IS_DONE:
# done by this lease.
NOW_DEAD = 2
IS_QUEUED, IS_GONE, IS_DEAD, IS_DONE = -1, -2, -3, -4

_COMMON = """
local S, G = KEYS[1], '@GROUP'
local function key_of(id) return S .. ':item:' .. id end

-- The server's clock, the only one that counts.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function wake() redis.call('XADD', S .. ':news', 'MAXLEN', 1, '*', 'look', 'again') end

local function make_ready(id)
  redis.call('HSET', key_of(id), 'entry', redis.call('XADD', S, '*', 'id', id))
end

local function make_delayed(id, ms)
  local due = now() + ms
  local first = redis.call('ZRANGE', S .. ':delayed', 0, 0, 'WITHSCORES')
  redis.call('ZADD', S .. ':delayed', due, id)
  if not first[2] or due < tonumber(first[2]) then wake() end
end

local function enqueue(id, ms)
  if tonumber(ms) > 0 then make_delayed(id, tonumber(ms)) else make_ready(id) end
end

local function add_failure(id, failure)
  local number = redis.call('HINCRBY', key_of(id), 'failures', 1)
  redis.call('HSET', key_of(id), 'failure:' .. number, failure)
end

local function wake_if_drained()
  if redis.call('XLEN', S) == 0 and redis.call('ZCARD', S .. ':delayed') == 0 then wake() end
end

local function dead_letter(id)
  local fields = redis.call('HGETALL', key_of(id))
  local dead_entry = redis.call('XADD', S .. ':dead', '*', 'id', id, unpack(fields))
  redis.call('HSET', S .. ':dead-entries', id, dead_entry)
  redis.call('DEL', key_of(id))
  wake_if_drained()
end

-- The entry's id and fields; nil if it was deleted by hand.
local function read(entry)
  local found = redis.call('XRANGE', S, entry, entry)
  if not found[1] then return nil end
  local fields = {}
  for at = 1, #found[1][2], 2 do fields[found[1][2][at]] = found[1][2][at + 1] end
  return fields.id or entry, found[1][2], fields
end

-- Ends the lease. True: the entry was leased until now.
local function end_lease(entry)
  local pending = redis.call('XACK', S, G, entry) == 1
  if pending then redis.call('XDEL', S, entry) end
  return pending
end

-- Requeues an entry that no handler has seen.
local function put_back(entry)
  local id, fields, named = read(entry)
  if not end_lease(entry) or not id then return end
  if named.id then make_ready(id) else redis.call('XADD', S, '*', unpack(fields)) end
end

local function make_group() redis.pcall('XGROUP', 'CREATE', S, G, '0', 'MKSTREAM') end

-- Runs a command of the group, which is made first if it does not exist.
local function in_group(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    if not string.find(reply.err, 'NOGROUP') then error(reply.err) end
    make_group()
    reply = redis.call(...)
  end
  return reply
end

-- The state of an item whose lease is over.
local function state_of(id)
  if redis.call('EXISTS', key_of(id)) == 1 then return @IS_QUEUED end
  if redis.call('HEXISTS', S .. ':dead-entries', id) == 1 then return @IS_DEAD end
  return @IS_GONE
end

-- Begins the lease of an entry that was read.
local function begin(entry, list, holder)
  local fields = {}
  for at = 1, #list, 2 do fields[list[at]] = list[at + 1] end
  local id = fields.id
  if not id then -- added by another program
    id = entry
    local put = string.match(entry, '^%d+')
    redis.call('HSET', key_of(id), 'body', fields.body or '', 'entry', entry, 'put', put)
  elseif redis.call('EXISTS', key_of(id)) == 0 then -- deleted by hand
    end_lease(entry)
    return false
  end
  local attempt = redis.call('HINCRBY', key_of(id), 'attempt', 1)
  redis.call('HSET', key_of(id), 'begun', entry, 'holder', holder)
  local kept = redis.call('HMGET', key_of(id), 'body', 'progress', 'key', 'time_limit')
  local epoch = redis.call('INCR', S .. ':epoch')
  return {id, entry, attempt, epoch, kept[1], kept[2], kept[3], kept[4]}
end
"""

_SCRIPTS = {
    "put": """
local id, body, ms, time_limit, key = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if key then
  local known = redis.call('HGET', S .. ':keys', key)
  if known then return known end
end
if state_of(id) ~= @IS_GONE then return id end
redis.call('HSET', key_of(id), 'body', body, 'put', now())
if time_limit ~= '' then redis.call('HSET', key_of(id), 'time_limit', time_limit) end
if key then
  redis.call('HSET', key_of(id), 'key', key)
  redis.call('HSET', S .. ':keys', key, id)
end
enqueue(id, ms)
return id
""",
    "take": """
local reply = in_group(
  'XREADGROUP', 'GROUP', G, ARGV[1], 'COUNT', 1, 'STREAMS', S, '>')
if not reply then return false end
return begin(reply[1][2][1][1], reply[1][2][1][2], ARGV[2])
""",
    "begin": """
local fields = {}
for at = 3, #ARGV do fields[at - 2] = ARGV[at] end
return begin(ARGV[1], fields, ARGV[2])
""",
    "put_back": "put_back(ARGV[1])",
    "ack": """
local entry, id, caller = ARGV[1], ARGV[2], S .. ':acked:' .. ARGV[3]
if not end_lease(entry) then
  return redis.call('GET', caller) == entry and @IS_DONE or state_of(id)
end
redis.call('SET', caller, entry, 'EX', 86400) -- in case that the answer is lost
local key = redis.call('HGET', key_of(id), 'key')
if key then redis.call('HDEL', S .. ':keys', key) end
redis.call('DEL', key_of(id))
redis.call('INCR', S .. ':done')
wake_if_drained()
return 1
""",
    "nack": """
local entry, id, ms, failure = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not end_lease(entry) then return state_of(id) end
if failure then
  add_failure(id, failure)
else -- snoozed
  redis.call('HINCRBY', key_of(id), 'attempt', -1)
end
local unwanted = redis.call('HGET', key_of(id), 'unwanted')
if unwanted then
  add_failure(id, unwanted)
  dead_letter(id)
  return @NOW_DEAD
end
enqueue(id, ms)
return 1
""",
    "reject": """
local entry, id, failure = ARGV[1], ARGV[2], ARGV[3]
if not end_lease(entry) then return state_of(id) end
add_failure(id, failure)
dead_letter(id)
return 1
""",
    "extend": """
local entry, id, consumer, progress = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local claimed = redis.call('XCLAIM', S, G, consumer, 0, entry, 'JUSTID')
if not claimed[1] then return 0 end
if progress then redis.call('HSET', key_of(id), 'progress', progress) end
return 1
""",
    "counts": """
local pending = in_group('XPENDING', S, G)[1]
return {
  redis.call('XLEN', S) - pending, pending, redis.call('ZCARD', S .. ':delayed'),
  tonumber(redis.call('GET', S .. ':done') or 0), redis.call('XLEN', S .. ':dead')}
""",
    # Answers id, state, attempt, age in milliseconds (-1: unknown), holder and key of each item.
    "items": """
local wanted, left, items, time = ARGV[1], tonumber(ARGV[2]), {}, now()
local function add(id, state, attempt, put, holder, key)
  local age = put and time - tonumber(put) or -1
  left = left - 1
  table.insert(items, {id, state, tonumber(attempt or 0), age, holder or '', key or ''})
end
local function add_living(id, state)
  local fields = redis.call('HMGET', key_of(id), 'attempt', 'put', 'holder', 'key')
  add(id, state, fields[1], fields[2], state == 'leased' and fields[3], fields[4])
end
local function wants(state) return left > 0 and (wanted == '' or wanted == state) end

local pending = {}
if wants('leased') or wants('ready') then
  for _, one in ipairs(in_group('XPENDING', S, G, '-', '+', 2147483647)) do
    pending[one[1]] = true
    if wants('leased') then
      local id = read(one[1])
      if id then add_living(id, 'leased') end
    end
  end
end
if wants('ready') then
  for _, one in ipairs(redis.call('XRANGE', S, '-', '+')) do
    if left > 0 and not pending[one[1]] then
      local id = read(one[1])
      if redis.call('EXISTS', key_of(id)) == 1 then
        add_living(id, 'ready')
      else -- added by another program
        add(id, 'ready', 0, string.match(id, '^%d+'))
      end
    end
  end
end
if wants('delayed') then
  for _, id in ipairs(redis.call('ZRANGE', S .. ':delayed', 0, left - 1)) do
    add_living(id, 'delayed')
  end
end
if wants('dead') then
  for _, one in ipairs(redis.call('XRANGE', S .. ':dead', '-', '+', 'COUNT', left)) do
    local fields = {}
    for at = 1, #one[2], 2 do fields[one[2][at]] = one[2][at + 1] end
    add(fields.id, 'dead', fields.attempt, fields.put, nil, fields.key)
  end
end
return items
""",
    # Answers the milliseconds until the next delayed item is due (-1: there is none), and the
    # latest entry of the news.
    "tend": """
local consumer, lease_ms = ARGV[1], ARGV[2]
for _, id in ipairs(redis.call(
    'ZRANGEBYSCORE', S .. ':delayed', '-inf', now(), 'LIMIT', 0, 100)) do
  redis.call('ZREM', S .. ':delayed', id)
  make_ready(id)
end
for _, entry in ipairs(in_group(
    'XAUTOCLAIM', S, G, consumer, lease_ms, '0-0', 'COUNT', 100, 'JUSTID')[2]) do
  local id = read(entry)
  if not id then
    end_lease(entry)
  elseif redis.call('HGET', key_of(id), 'begun') ~= entry then
    put_back(entry)
  else
    end_lease(entry)
    add_failure(id, 'its worker was lost: the lease was not extended in time')
    local unwanted = redis.call('HGET', key_of(id), 'unwanted')
    if unwanted then
      add_failure(id, unwanted)
      dead_letter(id)
    else
      make_ready(id)
    end
  end
end
for _, one in ipairs(redis.call('XINFO', 'CONSUMERS', S, G)) do
  -- name, pending, idle: the consumers of processes that have ended
  if one[4] == 0 and one[6] > tonumber(lease_ms) and one[2] ~= consumer then
    redis.call('XGROUP', 'DELCONSUMER', S, G, one[2])
  end
end
local first = redis.call('ZRANGE', S .. ':delayed', 0, 0, 'WITHSCORES')
local news = redis.call('XREVRANGE', S .. ':news', '+', '-', 'COUNT', 1)
return {
  first[2] and math.max(tonumber(first[2]) - now(), 0) or -1, news[1] and news[1][1] or '0-0'}
""",
    "retry": """
local id = ARGV[1]
local dead_entry = redis.call('HGET', S .. ':dead-entries', id)
if not dead_entry then return 0 end
local list = redis.call('XRANGE', S .. ':dead', dead_entry, dead_entry)[1][2]
local fields = {}
for at = 1, #list, 2 do fields[list[at]] = list[at + 1] end
redis.call('HSET', key_of(id), 'body', fields.body)
for _, name in ipairs({'key', 'progress', 'put', 'time_limit'}) do
  if fields[name] then redis.call('HSET', key_of(id), name, fields[name]) end
end
redis.call('XDEL', S .. ':dead', dead_entry)
redis.call('HDEL', S .. ':dead-entries', id)
make_ready(id)
return 1
""",
    "cancel": """
local id, failure = ARGV[1], ARGV[2]
local entry = redis.call('HGET', key_of(id), 'entry')
if redis.call('ZREM', S .. ':delayed', id) == 0 then
  if not entry then return 0 end
  if #in_group('XPENDING', S, G, entry, entry, 1) > 0 then
    redis.call('HSETNX', key_of(id), 'unwanted', failure)
    return 2
  end
  redis.call('XDEL', S, entry)
end
add_failure(id, failure)
dead_letter(id)
return 1
""",
}

_NAMES = {
    "GROUP": GROUP,
    "NOW_DEAD": NOW_DEAD,
    "IS_QUEUED": IS_QUEUED,
    "IS_GONE": IS_GONE,
    "IS_DEAD": IS_DEAD,
    "IS_DONE": IS_DONE,
}


def _with_names(source: str) -> str:
    return re.sub("@([A-Z_]+)", lambda match: str(_NAMES[match[1]]), source)


ALL = {name: _with_names(_COMMON + source) for name, source in _SCRIPTS.items()}
