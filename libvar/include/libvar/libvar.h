#pragma once

/// The whole public interface: Model, Session, Request and Answer, conversion, analyses, ops.

#include "libvar/analysis.h"
#include "libvar/batch_session.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "libvar/inspection.h"
#include "libvar/knockout.h"
#include "libvar/model.h"
#include "libvar/numerics.h"
#include "libvar/ops.h"
#include "libvar/questions.h"
#include "libvar/report.h"
#include "libvar/request.h"
#include "libvar/session.h"
#include "libvar/threads.h"
#include "libvar/var_params.h"
#include "libvar/version.h"
