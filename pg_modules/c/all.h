/* Included by kernels.c for every REAL, so nothing here has guards. INT is an integer of REAL's size. */
#include "maps.h"
#include "taps.h"
#include "winograd.h"
#include "upsample.h"
#include "norm_gate.h"
#include "group_norm.h"
#include "styled.h"
