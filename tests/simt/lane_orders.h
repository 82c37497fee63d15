#pragma once

#include "simt.h"

/// Runs the test's body in every order of the threads, two draws of the random one.
template <typename Body>
void for_all_lane_orders(const Body& body) {
  for (const simt::LaneOrder order : simt::kAllLaneOrders) {
    simt::set_schedule({order, 1});
    body();
  }
  simt::set_schedule({simt::LaneOrder::kRandom, 2});
  body();
  simt::set_schedule({});
}
