#pragma once

#include <stdexcept>

namespace libvar {

/// Base of every exception that the library throws on purpose. The message names the file, key,
/// tensor or parameter, what was expected and what was found.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A parameter or a configuration value is out of range or contradicts another.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint or archive is missing, damaged, incomplete or of an unknown kind.
class ArchiveError : public Error {
 public:
  using Error::Error;
};

/// A request can't be answered: image, prompt or question is not usable.
class InputError : public Error {
 public:
  using Error::Error;
};

/// Memory or disk space, on the host or the device, does not suffice.
class ResourceError : public Error {
 public:
  using Error::Error;
};

}  // namespace libvar
