#include "instance/open_vtpm.hpp"

#include "instance/load_decision.hpp"
#include "instance/state_blob.hpp"

namespace vtpmd::instance {

Task<Result<FoundImage>> find_image(ImageRequest request, BlockIo& io, const Log& log) {
    FoundImage found;
    found.version = request.version.value_or(TpmVersion::tpm20);
    auto file = io.open(request.path, OpenMode::existing);
    if (!file) {
        if (file.error().code == Errc::not_found) {
            co_return found;
        }
        co_return std::move(file).error();
    }
    auto identity = co_await store::StateImage::identify(**file);
    if (!identity) {
        found.unreadable = std::move(*file);
        found.why_unreadable = std::move(identity).error();
        co_return found;
    }
    if (!request.version) {
        found.version = identity->version;
    }
    const store::ImageIdentity expected{request.uuid, found.version};
    auto image = co_await store::StateImage::open(std::move(*file), expected, log);
    if (!image) {
        co_return std::move(image).error();
    }
    found.image = std::move(*image);
    co_return found;
}

namespace {

Task<Result<ManagerFact>> ask_manager(proto::ManagerClient& manager, TpmVersion version, bool& may_create) {
    auto reply = co_await manager.hello();
    if (!reply) {
        switch (reply.error().code) {
        case Errc::tombstone:
            co_return ManagerFact::tombstone;
        case Errc::not_found: // not registered, and neither side wants it so
            co_return ManagerFact::nothing;
        case Errc::unavailable:
            co_return in_context(std::move(reply).error(),
                                 "no answer; is `vtpmd --mode=manager` running, and is this its "
                                 "socket (--manager)?");
        default:
            co_return in_context(std::move(reply).error(), "the manager refuses");
        }
    }
    may_create = reply->may_create;
    if (!reply->known) {
        co_return ManagerFact::nothing;
    }
    if (reply->version != version) {
        co_return make_error(Errc::mismatch,
                             "the manager has this vTPM registered as a TPM {}, not {}; --tpm-version={} fits",
                             to_string(reply->version), to_string(version), to_string(reply->version));
    }
    co_return reply->has_record ? ManagerFact::has_record : ManagerFact::registered;
}

Task<Result<EngineState>> load_state(store::StateImage& image, proto::ManagerClient& manager) {
    auto key = co_await manager.load_hash_key();
    if (!key) {
        co_return in_context(std::move(key).error(), "asking the manager for the state's key");
    }
    if (!*key) {
        co_return make_error(Errc::mismatch, "{}: the manager said that it has a key, and then that it has none",
                             image.path());
    }
    auto blob = co_await image.load((*key)->view());
    if (!blob) {
        co_return std::move(blob).error();
    }
    auto state = decode_state(image.identity().version, blob->view());
    if (!state) {
        co_return in_context(std::move(state).error(), image.path());
    }
    co_return state;
}

Task<Result<std::unique_ptr<store::StateImage>>> create_image(FoundImage found, std::string path, Uuid uuid,
                                                              BlockIo& io, const Log& log) {
    if (!found.unreadable) {
        auto file = io.open(path, OpenMode::create);
        if (!file) {
            co_return std::move(file).error();
        }
        found.unreadable = std::move(*file);
    }
    const store::ImageIdentity identity{uuid, found.version};
    auto image = co_await store::StateImage::create(std::move(found.unreadable), identity, log);
    if (!image && image.error().code == Errc::exists && found.why_unreadable) {
        co_return std::move(*found.why_unreadable);
    }
    co_return image;
}

} // namespace

Task<Result<OpenVtpm>> open_vtpm(OpenRequest request, FoundImage found, BlockIo& io, proto::ManagerClient& manager,
                                 const Log& log) {
    bool may_create = false;
    auto known = co_await ask_manager(manager, found.version, may_create);
    if (!known) {
        co_return std::move(known).error();
    }
    LoadFacts facts;
    facts.manager = *known;
    facts.incoming = request.incoming;
    facts.create_asked = request.create || may_create;
    if (found.image) {
        facts.image = found.image->had_state() ? ImageFact::has_state : ImageFact::empty;
    }
    LoadDecision decision = decide_load(facts, request.uuid, request.path);
    OpenVtpm out;
    switch (decision.action) {
    case LoadAction::refuse:
        if (found.why_unreadable && *known != ManagerFact::tombstone) {
            co_return std::move(*found.why_unreadable);
        }
        co_return Error{decision.code, std::move(decision.message)};
    case LoadAction::load: {
        auto state = co_await load_state(*found.image, manager);
        if (!state) {
            co_return std::move(state).error();
        }
        out.state = std::move(*state);
        break;
    }
    case LoadAction::fresh_in_image:
        out.fresh = true;
        break;
    case LoadAction::create_image_and_fresh: {
        auto image = co_await create_image(std::move(found), request.path, request.uuid, io, log);
        if (!image) {
            co_return std::move(image).error();
        }
        out.image = std::move(*image);
        out.fresh = true;
        co_return out;
    }
    }
    out.image = std::move(found.image);
    co_return out;
}

} // namespace vtpmd::instance
