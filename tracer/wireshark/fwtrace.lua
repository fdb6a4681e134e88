-- Wireshark dissector for the captures of fwtrace: what each packet's comment says, as fields to
-- filter by and to have columns of: fwtrace.chain == "input", fwtrace.handle == 3.
--
-- Install it into the plugin directory (Help > About Wireshark > Folders > Personal Lua Plugins), or
-- name it: tshark -X lua_script:fwtrace.lua -r drops.pcapng -Y 'fwtrace.confidence != "exact"'.
--
-- It reads comments only, since scripts cannot see the custom option with the whole event.

local fwtrace = Proto("fwtrace", "fwtrace")
local fields = {
    verdict = ProtoField.string("fwtrace.verdict", "Verdict"),
    engine = ProtoField.string("fwtrace.engine", "Engine"),
    family = ProtoField.string("fwtrace.family", "Family of the table"),
    table = ProtoField.string("fwtrace.table", "Table"),
    chain = ProtoField.string("fwtrace.chain", "Chain"),
    number = ProtoField.uint32("fwtrace.number", "Number of the rule"),
    handle = ProtoField.uint64("fwtrace.handle", "Handle of the rule"),
    rule = ProtoField.string("fwtrace.rule", "Rule"),
    policy = ProtoField.string("fwtrace.policy", "Policy"),
    conntrack = ProtoField.string("fwtrace.conntrack", "Conntrack state"),
    source = ProtoField.string("fwtrace.source", "Source of the evidence"),
    confidence = ProtoField.string("fwtrace.confidence", "Confidence"),
    reason = ProtoField.string("fwtrace.reason", "Drop reason"),
}
-- In the order in which they are shown.
local order = {
    "verdict", "engine", "family", "table", "chain", "number", "handle", "rule", "policy", "conntrack", "source",
    "confidence", "reason",
}
for _, name in ipairs(order) do
    table.insert(fwtrace.fields, fields[name])
end

local frame_comment = Field.new("frame.comment")
local verdicts = { DROP = "drop", REJECT = "reject", LOG = "log" }
local confidences = { exact = true, computed = true, ambiguous = true, engine = true, unknown = true }

-- The parts of a comment, which stand between " | ". A rule's text may have that within.
local function split(text)
    local parts = {}
    local from = 1
    while true do
        local at, behind = text:find(" | ", from, true)
        if not at then
            table.insert(parts, text:sub(from))
            return parts
        end
        table.insert(parts, text:sub(from, at - 1))
        from = behind + 1
    end
end

-- What a comment says by name, or nil if fwtrace did not write it.
local function parse(comment)
    local verdict, rest = comment:match("^(%u+) (.*)$")
    if not verdicts[verdict] then
        return nil
    end
    local found = { verdict = verdicts[verdict] }
    -- Up to the evidence, which every comment has, then what is before it from its end on.
    local parts = split(rest)
    local last
    for at, part in ipairs(parts) do
        local source, confidence = part:match("^([%l-]+), (%l+)$")
        if at > 1 and confidences[confidence] then
            found.source, found.confidence, last = source, confidence, at - 1
            break
        end
    end
    if not last then
        return nil
    end
    local engine = last > 1 and parts[last]:match("^iptables%-%l+$")
    if engine then
        found.engine, last = engine, last - 1
    end
    local state = last > 1 and parts[last]:match("^ct (%l+)$")
    if state then
        found.conntrack, last = state, last - 1
    end
    local who = table.concat(parts, " | ", 1, last)

    local family, tab, chain, kind, tail = who:match("^by (%l%w*) (%S+) (%S+) (%l+)(.*)$")
    if kind == "rule" then
        found.family, found.table, found.chain = family, tab, chain
        found.engine = found.engine or "nftables"
        found.number = tonumber(tail:match("^ (%d+)"))
        tail = tail:gsub("^ %d+", ""):gsub("^ of unknown number", "")
        local handle = tail:match("^ %(handle (%d+)%)")
        if handle then
            found.handle = UInt64.new(tonumber(handle))
            tail = tail:gsub("^ %(handle %d+%)", "")
        end
        found.rule = tail:match("^[^:]*: (.*)$")
    elseif kind == "policy" then
        found.family, found.table, found.chain = family, tab, chain
        found.engine = found.engine or "nftables"
        found.policy = tail:match("^ (%l+)")
    elseif who:match("^not by the firewall: ") then
        found.engine = "other"
        found.reason = who:match("^not by the firewall: (%S+)")
    else
        local by = who:match("^by ([%l-]+)")
        found.engine = by == "netfilter" and "other" or by
    end
    return found
end

function fwtrace.dissector(_, _, tree)
    for _, comment in ipairs({ frame_comment() }) do
        local found = parse(tostring(comment))
        if found then
            local branch = tree:add(fwtrace)
            for _, name in ipairs(order) do
                if found[name] then
                    branch:add(fields[name], found[name]):set_generated()
                end
            end
        end
    end
end

register_postdissector(fwtrace)
