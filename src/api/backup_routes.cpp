// The manager's store itself: its backup, which is the answer's body, or a request's that asks what it is; its recovery keys;
// and its growth.
#include "api/handlers.hpp"
#include "util/text.hpp"

#include <limits>

namespace vtpmd::api {

namespace {

Task<Result<Response>> make_backup(Call call) {
    auto copy = co_await call.control.backup();
    if (!copy) {
        co_return copy.error();
    }
    Response out{.content_type = "application/octet-stream"};
    out.stream = std::move(*copy);
    co_return out;
}

namespace json = boost::json;
using manager::BackupInfo;

std::string_view to_text(BackupInfo::Relation r) {
    switch (r) {
    case BackupInfo::Relation::newest:
        return "newest";
    case BackupInfo::Relation::older:
        return "older";
    case BackupInfo::Relation::fork:
        return "fork";
    }
    return "?";
}

json::object key_json(const manager::RecoveryKeyInfo& k) {
    return {{"id", k.id}, {"label", k.label}, {"created", whole(k.created)}};
}

json::array keys_json(const std::vector<manager::RecoveryKeyInfo>& all) {
    json::array keys;
    for (const manager::RecoveryKeyInfo& k : all) {
        keys.push_back(key_json(k));
    }
    return keys;
}

Task<Result<Response>> verify_backup(Call call) {
    auto seen = co_await call.control.verify_backup(std::move(call.octets));
    if (!seen) {
        co_return seen.error();
    }
    co_return answer(200, json::object{{"store_uuid", to_string(seen->store)},
                                       {"backup", seen->backup},
                                       {"relation", to_text(seen->relation)},
                                       {"written_at", whole(seen->written_at)},
                                       {"counter", whole(seen->counter)},
                                       {"vtpms", whole(seen->vtpms)},
                                       {"missing", whole(seen->missing)},
                                       {"behind", whole(seen->behind)},
                                       {"ahead", whole(seen->ahead)},
                                       {"opened_by", keys_json(seen->opened_by)},
                                       {"not_opened_by", keys_json(seen->not_opened_by)}});
}

Task<Result<Response>> list_recovery(Call call) {
    co_return answer(200, json::object{{"recovery_keys", keys_json(call.control.recovery_keys())}});
}

Task<Result<Response>> add_recovery(Call call) {
    auto made = co_await call.control.add_recovery_key(std::string(text_of(call.body, "label", "")));
    if (!made) {
        co_return made.error();
    }
    json::object out = key_json(made->info);
    out["file"] = json::string(reinterpret_cast<const char*>(made->file.data()), made->file.size());
    co_return answer(201, out);
}

Task<Result<Response>> remove_recovery(Call call) {
    const std::string id(text_of(call.query, "id", ""));
    auto removed = co_await call.control.remove_recovery_key(id);
    if (!removed) {
        co_return removed.error();
    }
    co_return answer(200, json::object{{"id", id}, {"removed", true}});
}

constexpr Field recovery_fields[] = {
    {"label", "string", false, "what to call it: who keeps it, where; at most 64 bytes of printable UTF-8"},
};
constexpr Field recovery_query[] = {
    {"id", "string", true, "of the key, as GET /v1/recovery shows it"},
};

Task<Result<Response>> grow_store(Call call) {
    std::uint64_t bytes = 0;
    if (const auto size = text_of(call.body, "size", ""); !size.empty()) {
        auto number = parse_number(size, std::numeric_limits<std::uint64_t>::max());
        if (!number) {
            co_return in_context(number.error(), "size");
        }
        bytes = *number;
    }
    auto grown = co_await call.control.grow_store(bytes);
    if (!grown) {
        co_return grown.error();
    }
    co_return host_answer(*grown);
}

constexpr Field grow_fields[] = {
    {"size", "string", false,
     "bytes that the store is to have; of a block device that was made larger it may be left out, for all of it"},
};

} // namespace

std::vector<Route> backup_routes() {
    return {
        {{"POST", "/v1/backup/verify", "What a copy of this store is; nothing is changed", {}, {}, true},
         verify_backup},
        {{"GET", "/v1/recovery", "The recovery keys of the store, without the keys", {}}, list_recovery},
        {{"POST", "/v1/recovery", "Makes a recovery key: the text of its file, which is kept nowhere", recovery_fields},
         add_recovery},
        {{"DELETE", "/v1/recovery", "Removes a recovery key", {}, recovery_query}, remove_recovery},
        {{"POST", "/v1/backup", "A consistent copy of the manager's store, which goes on meanwhile, as bytes", {}},
         make_backup},
        {{"POST", "/v1/store/grow", "Makes the manager's store larger, while it is in use", grow_fields}, grow_store},
    };
}

} // namespace vtpmd::api
