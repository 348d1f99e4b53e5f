#include "tools/exit_code.h"

#include <new>

#include "recipes/user_error.h"

namespace dms {

Failure failure_of(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const UserError& error) {
    return {kExitWrongInput, error.what()};
  } catch (const Interrupted& error) {
    return {kExitInterrupted, error.what()};
  } catch (const std::bad_alloc&) {
    return {kExitFailed, "out of memory"};
  } catch (const std::exception& error) {
    return {kExitFailed, error.what()};
  }
}

}  // namespace dms
