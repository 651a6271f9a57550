-- A model server that costs next to nothing: all answers are made when it starts.
--
-- A prompt that says "pace 20 ms x 300" gets a stream of so many events, so far apart; any other stream is 64 events,
-- the finish and the end mark, all at once. Every event is an HTTP chunk of its own, as model servers send them.

local WORDS = {" the", " replica", " with", " most", " free", " memory", " answers", " first"}
local CONTENT_EVENTS = 64
local HEAD = '"id":"chatcmpl-892b39397c47b0a3","object":"%s","created":1795346715,"model":"bench-model"'
local USAGE = '"usage":{"prompt_tokens":214,"completion_tokens":64,"total_tokens":278}'

local function event(fields)
    return "data: {" .. HEAD:format("chat.completion.chunk") .. "," .. fields .. "}\n\n"
end

local function delta(content, finish)
    return event('"choices":[{"index":0,"delta":{' .. content .. '},"logprobs":null,"finish_reason":' .. finish .. '}]')
end

local CONTENTS = {}
for number = 1, #WORDS do
    CONTENTS[number] = delta('"content":"' .. WORDS[number] .. '"', "null")
end
local FIRST = delta('"role":"assistant","content":"' .. WORDS[1] .. '"', "null")
local FINISH = delta("", '"stop"')
local USAGE_EVENT = event('"choices":[],' .. USAGE)
local DONE = "data: [DONE]\n\n"
local COMPLETION = "{" .. HEAD:format("chat.completion") .. ',"choices":[{"index":0,"message":{"role":"assistant","content":"'
    .. table.concat(WORDS) .. '"},"logprobs":null,"finish_reason":"stop"}],' .. USAGE .. "}"
local MODELS = '{"object":"list","data":[{"id":"bench-model","object":"model","created":1795346715}]}'

local counts = {calls = 0, events = 0}

local function whole(body)
    ngx.header["content-type"] = "application/json"
    ngx.header["content-length"] = #body
    ngx.print(body)
end

local function finish(body)
    ngx.print(FINISH)
    if body:find('"include_usage":true', 1, true) or body:find('"include_usage": true', 1, true) then
        ngx.print(USAGE_EVENT)
    end
    ngx.print(DONE)
end

local function at_once(body)
    ngx.print(FIRST)
    for number = 2, CONTENT_EVENTS do
        ngx.print(CONTENTS[number % #WORDS + 1])
    end
    finish(body)
end

local function paced(body, gap, events)
    local due = ngx.now()
    for number = 1, events do
        ngx.print(number == 1 and FIRST or CONTENTS[number % #WORDS + 1])
        if not ngx.flush(true) then
            return -- the client has left
        end
        counts.events = counts.events + 1
        due = due + gap
        ngx.sleep(math.max(0, due - ngx.now()))
    end
    finish(body)
end

local function chat()
    ngx.req.read_body()
    local body = ngx.req.get_body_data() or ""
    counts.calls = counts.calls + 1
    if not (body:find('"stream":true', 1, true) or body:find('"stream": true', 1, true)) then
        return whole(COMPLETION)
    end
    ngx.header["content-type"] = "text/event-stream; charset=utf-8"
    local gap, events = body:match("pace (%d+) ms x (%d+)")
    if gap then
        paced(body, tonumber(gap) / 1000, tonumber(events))
    else
        at_once(body)
    end
end

function answer()
    local path = ngx.var.uri
    if path:find("/chat/completions", 1, true) then
        chat()
    elseif path == "/counts" then
        whole(('{"calls":%d,"events":%d}'):format(counts.calls, counts.events))
    elseif path:find("/models", 1, true) then
        whole(MODELS)
    elseif path:find("/health", 1, true) then
        whole("{}")
    else
        ngx.exit(404)
    end
end
