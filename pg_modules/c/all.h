#include "taps.h"
#include "winograd.h"
#include "upsample.h"
#include "norm_gate.h"
