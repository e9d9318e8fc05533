// Finds a vTPM's image, asks the manager what it knows, and brings the two together (load_decision.hpp).
#pragma once

#include "engine/engine.hpp"
#include "proto/link/client.hpp"
#include "store/state_image.hpp"

#include <memory>
#include <optional>

namespace vtpmd::instance {

struct ImageRequest {
    Uuid uuid;
    std::string path;
    std::optional<TpmVersion> version; ///< as asked for; not given: the image's, 2.0 if there is none
};

/// What lies at the image's place. The image, if there is one, is open and locked.
struct FoundImage {
    std::unique_ptr<store::StateImage> image;
    TpmVersion version = TpmVersion::tpm20;
    /// There is something, but no image can be read there: an error unless it turns out to be nothing (an empty device, a
    /// creation cut short) and a new vTPM is asked for.
    std::unique_ptr<BlockFile> unreadable;
    std::optional<Error> why_unreadable;
};
/// Errc::busy (open in another process), not_ours, corrupt, version, mismatch (another vTPM's, another TPM version).
Task<Result<FoundImage>> find_image(ImageRequest request, BlockIo& io, const Log& log);

struct OpenVtpm {
    std::unique_ptr<store::StateImage> image;
    EngineState state; ///< empty: a fresh TPM
    bool fresh = false;
};
struct OpenRequest {
    Uuid uuid;
    std::string path;
    bool create = false;
    bool incoming = false;
};
/// Says hello and loads, creates or refuses.
Task<Result<OpenVtpm>> open_vtpm(OpenRequest request, FoundImage found, BlockIo& io, proto::ManagerClient& manager,
                                 const Log& log);

} // namespace vtpmd::instance
