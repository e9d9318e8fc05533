#include "instance/state/open_vtpm.hpp"

#include "instance/state/load_decision.hpp"
#include "instance/state/state_blob.hpp"

#include <cerrno>
#include <ctime>
#include <filesystem>
#include <fmt/chrono.h>
#include <unistd.h>

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

Task<Result<ManagerFact>> ask_manager(proto::ManagerClient& manager, TpmVersion version, proto::HelloReply& said) {
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
    said = *reply;
    if (!reply->known) {
        co_return ManagerFact::nothing;
    }
    if (reply->version != version) {
        co_return make_error(Errc::mismatch,
                             "the manager has this vTPM registered as a TPM {}, not {}; --tpm-version={} fits",
                             to_string(reply->version), to_string(version), to_string(reply->version));
    }
    if (reply->has_record) {
        co_return ManagerFact::has_record;
    }
    co_return reply->reset ? ManagerFact::reset : ManagerFact::registered;
}

std::string time_text(std::uint64_t seconds) {
    return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

/// Why a state was not loaded, of a vTPM that was reset.
Task<Error> explain_by_reset(Error why, store::StateImage& image, const proto::ResetInfo& reset) {
    auto past = co_await image.holds(reset.given_up);
    if (past && *past) {
        co_return make_error(
            Errc::rollback,
            "{}: vTPM {} was reset to factory on {}, and this image is from before: that state does not "
            "come back; put the image in its place that the vTPM has had since",
            image.path(), image.identity().uuid, time_text(reset.when));
    }
    why.message += fmt::format(" (the vTPM was reset to factory on {}: an image from before does not come back)",
                               time_text(reset.when));
    co_return why;
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

/// What a registration needs on this side comes first: where no image can be made, the manager is not told of a new vTPM.
Result<void> check_place(const std::string& path) {
    std::string parent = std::filesystem::path(path).parent_path();
    if (parent.empty()) {
        parent = ".";
    }
    return ::access(parent.c_str(), W_OK | X_OK) == 0
               ? Result<void>{}
               : Result<void>(errno_error(errno, fmt::format("{}: no image can be made there", path)));
}

/// An image that was made before the manager was asked goes again, unless it is kept.
class NewImage {
  public:
    explicit NewImage(std::string path)
        : path_(std::move(path)) {}
    NewImage(const NewImage&) = delete;
    NewImage& operator=(const NewImage&) = delete;
    ~NewImage() {
        if (image) {
            (void)::unlink(path_.c_str()); // still locked: it is the one that was made
        }
    }
    std::unique_ptr<store::StateImage> image;

  private:
    const std::string path_;
};

} // namespace

Task<Result<OpenVtpm>> open_vtpm(OpenRequest request, FoundImage found, BlockIo& io, proto::ManagerClient& manager,
                                 const Log& log) {
    proto::HelloReply said;
    NewImage made(request.path);
    if (!found.image && !found.unreadable) {
        if (auto place = check_place(request.path); !place) {
            co_return place.error();
        }
        if (request.create) {
            FoundImage none;
            none.version = found.version;
            auto image = co_await create_image(std::move(none), request.path, request.uuid, io, log);
            if (!image) {
                co_return std::move(image).error();
            }
            made.image = std::move(*image);
        }
    }
    auto known = co_await ask_manager(manager, found.version, said);
    if (!known) {
        co_return std::move(known).error();
    }
    LoadFacts facts;
    facts.manager = *known;
    facts.incoming = request.incoming;
    facts.create_asked = request.create || said.may_create;
    if (found.image) {
        facts.image = found.image->had_state() ? ImageFact::has_state : ImageFact::empty;
    }
    if (found.image && *known == ManagerFact::reset) {
        auto past = co_await found.image->holds(said.reset->given_up);
        if (!past) {
            co_return std::move(past).error();
        }
        facts.image = *past ? ImageFact::given_up : facts.image;
    }
    LoadDecision decision = decide_load(facts, request.uuid, request.path);
    OpenVtpm out;
    switch (decision.action) {
    case LoadAction::refuse:
        if (found.why_unreadable && *known == ManagerFact::has_record &&
            found.why_unreadable->code == Errc::not_ours) { // none is made, whatever it says of --create
            const std::string& why = found.why_unreadable->message;
            co_return make_error(Errc::not_ours, "{} (there is: {})", decision.message,
                                 why.substr(0, why.find("; --create")));
        }
        if (found.why_unreadable && *known != ManagerFact::tombstone) {
            co_return std::move(*found.why_unreadable);
        }
        co_return Error{decision.code, std::move(decision.message)};
    case LoadAction::load: {
        auto state = co_await load_state(*found.image, manager);
        if (!state && said.reset && state.error().code == Errc::rollback) {
            Error why = std::move(state).error();
            Error explained = co_await explain_by_reset(std::move(why), *found.image, *said.reset);
            co_return explained;
        }
        if (!state) {
            co_return std::move(state).error();
        }
        out.state = std::move(*state);
        break;
    }
    case LoadAction::fresh_in_image:
        out.fresh = true;
        break;
    case LoadAction::fresh_after_reset: {
        auto given_up = co_await found.image->give_up(said.reset->given_up);
        if (!given_up || !*given_up) {
            co_return given_up ? make_error(Errc::io, "{}: changed while it was read", request.path)
                               : std::move(given_up).error();
        }
        log.info("vTPM {}: was reset to factory on {}: a fresh TPM takes the place of the state that was given up",
                 request.uuid, time_text(said.reset->when));
        out.fresh = true;
        break;
    }
    case LoadAction::create_image_and_fresh: {
        out.fresh = true;
        if (made.image) {
            out.image = std::move(made.image);
            co_return out;
        }
        auto image = co_await create_image(std::move(found), request.path, request.uuid, io, log);
        if (!image) {
            co_return std::move(image).error();
        }
        out.image = std::move(*image);
        co_return out;
    }
    }
    out.image = std::move(found.image);
    co_return out;
}

} // namespace vtpmd::instance
