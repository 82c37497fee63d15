#include "charts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <opencv2/imgproc.hpp>

#include "numbers.h"
#include "pictures.h"

namespace var_command {
namespace {

constexpr int kCaption = 26, kTick = 5, kPoint = 4;
constexpr double kTextSize = 0.42;
const cv::Scalar white(255, 255, 255), black(0, 0, 0), faint(225, 225, 225), orange(0, 159, 230);
/// Blue, vermillion and bluish green of Okabe and Ito, as BGR.
const std::array<cv::Scalar, 3> curve_colours{cv::Scalar(178, 114, 0), cv::Scalar(0, 94, 213),
                                              cv::Scalar(115, 158, 0)};

struct Range {
  double least = std::numeric_limits<double>::infinity(),
         most = -std::numeric_limits<double>::infinity();

  void add(double value) {
    if (!std::isfinite(value)) return;
    least = std::min(least, value);
    most = std::max(most, value);
  }

  /// Of some length, whatever was added.
  Range usable() const {
    if (least > most) return {0, 1};
    return least < most ? *this : Range{least - 0.5, most + 0.5};
  }
};

/// Round numbers in the range, about `count` of them: 1, 2 or 5 times a power of ten apart, and no
/// less than `closest`.
std::vector<double> ticks(const Range& range, int count, double closest) {
  const double raw = std::max((range.most - range.least) / count, closest),
               power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= raw) step = factor * power;
  }
  std::vector<double> out;
  const auto last = static_cast<int>(std::floor(range.most / step + 1e-9));
  for (auto i = static_cast<int>(std::ceil(range.least / step - 1e-9)); i <= last; ++i)
    out.push_back(i * step);
  return out;
}

/// Where values lie in a picture.
class Plane {
 public:
  Plane(const LineChart& chart, const cv::Rect& area) : area_(area) {
    for (const Curve& curve : chart.curves) {
      for (const auto& [x, y] : curve.points) {
        if (std::isfinite(x)) y_.add(y);
        x_.add(x);
        whole_x_ = whole_x_ && x == std::round(x);
      }
    }
    x_ = x_.usable();
    if (chart.y_range.first < chart.y_range.second) {
      y_ = {chart.y_range.first, chart.y_range.second};
    } else {
      y_.add(0);
      y_ = y_.usable();
      y_.most += 0.08 * (y_.most - y_.least);  // labels of the largest values
    }
  }

  int column(double x) const {
    return area_.x +
           static_cast<int>(std::lround((x - x_.least) / (x_.most - x_.least) * (area_.width - 1)));
  }

  int row(double y) const {
    return area_.y +
           static_cast<int>(std::lround((y_.most - y) / (y_.most - y_.least) * (area_.height - 1)));
  }

  const Range& x() const { return x_; }

  const Range& y() const { return y_; }

  /// True where every x is a whole number: layers, dimensions.
  bool whole_x() const { return whole_x_; }

 private:
  cv::Rect area_;
  Range x_, y_;
  bool whole_x_ = true;
};

void draw_axes(cv::Mat& canvas, const LineChart& chart, const Plane& plane, const cv::Rect& area) {
  const int bottom = area.y + area.height;
  for (const double y : ticks(plane.y(), 5, 0)) {
    const int row = plane.row(y);
    cv::line(canvas, {area.x, row}, {area.x + area.width, row}, faint, 1);
    const std::string text = number_text(y);
    put_text(canvas, text, {area.x - 8 - text_width(text, kTextSize), row + 4}, kTextSize);
  }
  for (const double x : ticks(plane.x(), area.width / 60, plane.whole_x() ? 1 : 0)) {
    const int column = plane.column(x);
    cv::line(canvas, {column, bottom}, {column, bottom + kTick}, black, 1);
    const std::string text = number_text(x);
    put_text(canvas, text, {column - text_width(text, kTextSize) / 2, bottom + 20}, kTextSize);
  }
  cv::line(canvas, {area.x, area.y}, {area.x, bottom}, black, 1);
  cv::line(canvas, {area.x, bottom}, {area.x + area.width, bottom}, black, 1);
  put_text(canvas, chart.y_name, {8, area.y - 10}, kTextSize);
  put_text(canvas, chart.x_name,
           {area.x + (area.width - text_width(chart.x_name, kTextSize)) / 2, bottom + 40},
           kTextSize);
}

/// A disc, a square or a triangle: curves are told apart without colours too.
void draw_point(cv::Mat& canvas, cv::Point at, std::size_t curve) {
  const cv::Scalar& colour = curve_colours.at(curve);
  const cv::Point across(kPoint, 0), down(0, kPoint);
  if (curve == 0) {
    cv::circle(canvas, at, kPoint, colour, cv::FILLED, cv::LINE_AA);
  } else if (curve == 1) {
    cv::rectangle(canvas, at - across - down, at + across + down, colour, cv::FILLED);
  } else {
    const std::vector<cv::Point> corners{at - down, at + across + down, at - across + down};
    cv::fillConvexPoly(canvas, corners, colour, cv::LINE_AA);
  }
}

void draw_curve(cv::Mat& canvas, const LineChart& chart, const Plane& plane, std::size_t index) {
  const cv::Scalar& colour = curve_colours.at(index);
  std::vector<cv::Point> run;  // without a gap
  const auto end_run = [&] {
    if (run.size() > 1) cv::polylines(canvas, run, false, colour, 2, cv::LINE_AA);
    for (const cv::Point& at : run) draw_point(canvas, at, index);
    run.clear();
  };
  for (const auto& [x, y] : chart.curves[index].points) {
    if (!std::isfinite(x) || !std::isfinite(y)) {
      end_run();
      continue;
    }
    const cv::Point at(plane.column(x), plane.row(y));
    if (chart.stems) {
      cv::line(canvas, {at.x, plane.row(0)}, at, colour, 1);
    } else {
      run.push_back(at);
    }
  }
  end_run();
}

/// Names of the curves from the right, in the line of the y axis' name.
void draw_legend(cv::Mat& canvas, const LineChart& chart, const cv::Rect& area) {
  int right = area.x + area.width;
  for (std::size_t i = chart.curves.size(); i-- > 0;) {
    const std::string& name = chart.curves[i].name;
    if (name.empty()) continue;
    right -= text_width(name, kTextSize);
    put_text(canvas, name, {right, area.y - 10}, kTextSize);
    right -= 14;
    draw_point(canvas, {right + 4, area.y - 14}, i);
    right -= 14;
  }
}

}  // namespace

cv::Mat line_chart(const LineChart& chart) {
  cv::Mat canvas(chart.height, chart.width, CV_8UC3, white);
  const cv::Rect area(66, 2 * kCaption + 4, chart.width - 66 - 24,
                      chart.height - 2 * kCaption - 4 - 48);
  put_text(canvas, chart.caption, {8, 18});
  const Plane plane(chart, area);
  draw_axes(canvas, chart, plane, area);
  draw_legend(canvas, chart, area);
  for (std::size_t i = chart.curves.size(); i-- > 0;) draw_curve(canvas, chart, plane, i);
  for (const Label& label : chart.labels) {
    const cv::Point at(plane.column(label.x), plane.row(label.y));
    cv::circle(canvas, at, kPoint + 3, black, 1, cv::LINE_AA);
    const int width = text_width(label.text, kTextSize);
    const bool fits = at.x + 12 + width <= chart.width;
    const cv::Point begin(fits ? at.x + 12 : at.x - 12 - width, at.y - 4);
    cv::rectangle(canvas, cv::Rect(begin.x - 2, begin.y - 12, width + 4, 15), white, cv::FILLED);
    put_text(canvas, label.text, begin, kTextSize);
  }
  return canvas;
}

cv::Mat bar_chart(const std::vector<std::string>& labels, const std::vector<double>& values,
                  const std::string& caption) {
  constexpr int kMargin = 12;
  const int left = 190, length = 500, height = 22;
  cv::Mat canvas(kCaption + static_cast<int>(values.size()) * height + kMargin, left + length + 80,
                 CV_8UC3, white);
  put_text(canvas, caption, {8, 18});
  const auto width = [&](double value) {
    return static_cast<int>(std::lround(value / 100 * length));
  };
  for (std::size_t i = 0; i < values.size(); ++i) {
    const int top = kCaption + static_cast<int>(i) * height;
    put_text(canvas, labels[i], {8, top + 16}, 0.42);
    cv::rectangle(canvas, cv::Rect(left, top + 3, std::max(width(values[i]), 1), height - 6),
                  cv::Scalar(178, 114, 0), cv::FILLED);  // blue
    put_text(canvas, short_number(values[i]), {left + width(values[i]) + 6, top + 16}, 0.42);
  }
  const int line = left + width(values.front());
  cv::line(canvas, {line, kCaption}, {line, canvas.rows - kMargin}, orange, 2);
  return canvas;
}

}  // namespace var_command
