#pragma once

#include <opencv2/core.hpp>
#include <string>
#include <utility>
#include <vector>

namespace var_command {

/// Points in the order of x, joined by lines; a y that is not a number is a gap. Its colour and the
/// shape of its points are those of its place among the curves.
struct Curve {
  std::string name;  ///< in the legend; empty: none
  std::vector<std::pair<double, double>> points;
};

/// A point with words beside it.
struct Label {
  double x = 0, y = 0;
  std::string text;
};

struct LineChart {
  std::string caption, x_name, y_name;
  std::vector<Curve> curves;  ///< at most 3, the first on top
  std::vector<Label> labels;
  std::pair<double, double> y_range{0, 0};  ///< equal: from 0 or below to what the curves reach
  bool stems = false;                       ///< lines from 0 to the points, none between them
  int width = 480, height = 320;
};

/// Curves over numbered axes, in colours of Okabe and Ito, which colour-blind people tell apart.
cv::Mat line_chart(const LineChart& chart);

/// A bar for each value in percent, with its label; a line at the first one.
cv::Mat bar_chart(const std::vector<std::string>& labels, const std::vector<double>& values,
                  const std::string& caption);

}  // namespace var_command
