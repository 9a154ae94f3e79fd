//! From values to colours: two colour maps, and scales, which map a range of values to a colour map.
//! Read next: `scene.rs`, which draws them.
//!
//! The maps are RdBu (reversed) and Blues by Cynthia Brewer, Mark Harrower and The Pennsylvania State University
//! (ColorBrewer, Apache License 2.0), joined by straight lines in RGB as matplotlib joins them.

/// A colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rgb(pub u8, pub u8, pub u8);

impl Rgb {
    /// The colour of NaN.
    pub const NONE: Rgb = Rgb(0x96, 0x96, 0x96);
    /// The colour of cells without a value, such as keys after the query.
    pub const EMPTY: Rgb = Rgb(0xec, 0xec, 0xec);

    /// The colour in CSS notation.
    pub fn css(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }

    /// Black or white, whichever is easier to read on this colour: by relative luminance (WCAG 2).
    pub fn ink(self) -> Rgb {
        let linear = |channel: u8| {
            let c = f32::from(channel) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        let luminance = 0.2126 * linear(self.0) + 0.7152 * linear(self.1) + 0.0722 * linear(self.2);
        if luminance > 0.179 { Rgb(0, 0, 0) } else { Rgb(255, 255, 255) }
    }
}

/// From blue over white to red.
const RD_BU_R: [u32; 11] =
    [0x053061, 0x2166ac, 0x4393c3, 0x92c5de, 0xd1e5f0, 0xf7f7f7, 0xfddbc7, 0xf4a582, 0xd6604d, 0xb2182b, 0x67001f];

/// From white to blue.
const BLUES: [u32; 9] = [0xf7fbff, 0xdeebf7, 0xc6dbef, 0x9ecae1, 0x6baed6, 0x4292c6, 0x2171b5, 0x08519c, 0x08306b];

fn along(map: &[u32], at: f32) -> Rgb {
    let place = at.clamp(0.0, 1.0) * (map.len() - 1) as f32;
    let i = (place as usize).min(map.len() - 2);
    let channel = |shift: u32| {
        let (a, b) = ((map[i] >> shift & 0xff) as f32, (map[i + 1] >> shift & 0xff) as f32);
        (a + (b - a) * (place - i as f32)).round() as u8
    };
    Rgb(channel(16), channel(8), channel(0))
}

/// How values map to colours.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    kind: Kind,
    /// The magnitude at which the colours end.
    pub limit: f32,
    /// The largest magnitude of all values.
    pub max: f32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Linear, with zero in the middle.
    Linear,
    /// With zero in the middle; linear up to the magnitude `linear`, logarithmic beyond.
    SymLog { linear: f32 },
    /// Linear, with zero at the beginning.
    Share,
}

/// The fraction of all values within the colours when a few values are far larger than the rest.
const CLIP: f64 = 0.98;
/// Values are clipped only if the largest is more than this many times larger than that fraction.
const OUTLIER: f32 = 2.0;

impl Scale {
    /// Centred on zero. If the largest magnitude is more than twice the 98th percentile, the colours end at the
    /// percentile. GPT-2 has a few dimensions in the thousands, next to which all others would look like zero.
    pub fn linear(values: impl Iterator<Item = f32>) -> Scale {
        let sizes = sizes(values);
        let max = sizes.last().copied().unwrap_or(0.0);
        let most = quantile(&sizes, CLIP);
        let limit = if max > OUTLIER * most && most > 0.0 { most } else { max };
        Scale { kind: Kind::Linear, limit, max }
    }

    /// Centred on zero: linear up to the power of ten below the median magnitude, logarithmic from there to the
    /// largest.
    pub fn symlog(values: impl Iterator<Item = f32>) -> Scale {
        let sizes = sizes(values);
        let max = sizes.last().copied().unwrap_or(0.0);
        let median = quantile(&sizes, 0.5);
        let linear = if median > 0.0 { 10f32.powf(median.log10().floor()) } else { max };
        Scale { kind: Kind::SymLog { linear }, limit: max, max }
    }

    /// From 0 to 1.
    pub fn share() -> Scale {
        Scale { kind: Kind::Share, limit: 1.0, max: 1.0 }
    }

    /// True if some values are beyond the colours.
    pub fn clipped(&self) -> bool {
        self.max > self.limit
    }

    /// True if the scale is centred on zero.
    pub fn signed(&self) -> bool {
        self.kind != Kind::Share
    }

    /// A value's place on the scale: -1 to 1 if it is centred on zero, else 0 to 1. NaN stays NaN.
    pub fn place(&self, value: f32) -> f32 {
        if value.is_nan() || self.limit == 0.0 {
            return if value.is_nan() { value } else { 0.0 };
        }
        let size = value.abs().min(self.limit);
        let part = match self.kind {
            Kind::Linear | Kind::Share => size / self.limit,
            // As matplotlib's SymLogNorm: one decade of colour for the linear part.
            Kind::SymLog { linear } => {
                let along = |size: f32| if size <= linear { size / linear } else { 1.0 + (size / linear).log10() };
                along(size) / along(self.limit)
            }
        };
        part.copysign(value)
    }

    /// The colour at a [`Scale::place`].
    pub fn colour_at(&self, place: f32) -> Rgb {
        match () {
            () if place.is_nan() => Rgb::NONE,
            () if self.signed() => along(&RD_BU_R, (place + 1.0) / 2.0),
            () => along(&BLUES, place),
        }
    }

    /// The colour of a value; grey for NaN.
    pub fn colour(&self, value: f32) -> Rgb {
        self.colour_at(self.place(value))
    }

    /// Round numbers along the scale, ascending, at most about `n` of them.
    pub fn ticks(&self, n: usize) -> Vec<f32> {
        let mut positive = match self.kind {
            Kind::SymLog { linear } if self.limit > 0.0 => {
                let decades: Vec<f32> =
                    (0..80).map(|i| linear * 10f32.powi(i)).take_while(|v| *v <= self.limit).collect();
                let every = decades.len().div_ceil((n / 2).max(1)).max(1);
                decades.into_iter().step_by(every).collect()
            }
            _ => {
                let step = round_step(self.limit / if self.signed() { n as f32 / 2.0 } else { n as f32 });
                let count = if step > 0.0 { (self.limit / step * 1.000_01) as usize } else { 0 };
                (1..=count).map(|i| i as f32 * step).collect::<Vec<f32>>()
            }
        };
        let mut ticks: Vec<f32> = if self.signed() { positive.iter().rev().map(|v| -v).collect() } else { Vec::new() };
        ticks.push(0.0);
        ticks.append(&mut positive);
        ticks
    }

    /// A note for when some values are beyond the colours.
    pub fn warning(&self) -> Option<String> {
        let (limit, max) = (number(self.limit), number(self.max));
        self.clipped().then(|| format!("colours end at ±{limit}, the 98th percentile; the largest value is {max}"))
    }

    /// What a reader must know besides the ticks; empty if the scale is linear and nothing is clipped.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Kind::SymLog { linear } = self.kind {
            notes.push(format!("log beyond ±{}", number(linear)));
        }
        if self.clipped() {
            notes.push(format!("clipped at ±{}", number(self.limit)));
            notes.push(format!("largest: {}", number(self.max)));
        }
        notes
    }
}

/// Magnitudes of the finite values, ascending.
fn sizes(values: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut sizes: Vec<f32> = values.filter(|v| v.is_finite()).map(f32::abs).collect();
    sizes.sort_unstable_by(f32::total_cmp);
    sizes
}

fn quantile(sorted: &[f32], at: f64) -> f32 {
    // The smallest value such that at least this fraction of all values is no larger.
    let rank = (at * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The smallest of 1, 2, 5, 10, 20, ... and their tenths that is at least this.
fn round_step(step: f32) -> f32 {
    if step.is_nan() || step <= 0.0 {
        return 0.0;
    }
    let decade = 10f32.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * decade).find(|s| *s >= step * 0.999).unwrap_or(10.0 * decade)
}

/// A number in about three digits.
pub fn number(value: f32) -> String {
    let size = value.abs();
    let shown = match () {
        () if size == 0.0 || !size.is_finite() => return format!("{value}"),
        () if !(1e-3..1e5).contains(&size) => return format!("{value:.1e}"),
        () if size >= 100.0 => format!("{value:.0}"),
        () if size >= 10.0 => format!("{value:.1}"),
        () if size >= 1.0 => format!("{value:.2}"),
        () => format!("{value:.4}"),
    };
    if shown.contains('.') { shown.trim_end_matches('0').trim_end_matches('.').into() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn red_is_positive_and_zero_is_white() {
        let scale = Scale::linear([-2.0, 1.0, 0.5].into_iter());
        assert_eq!((scale.limit, scale.clipped()), (2.0, false));
        assert_eq!(scale.colour(2.0), Rgb(0x67, 0, 0x1f));
        assert_eq!(scale.colour(-2.0), Rgb(0x05, 0x30, 0x61));
        assert_eq!(scale.colour(0.0), Rgb(0xf7, 0xf7, 0xf7));
        assert_eq!((scale.colour(f32::NAN), scale.colour(f32::INFINITY)), (Rgb::NONE, scale.colour(2.0)));
    }

    #[test]
    fn a_few_giants_are_clipped_and_said() {
        let mut values: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        values.extend([3000.0, -1.0]);
        let scale = Scale::linear(values.into_iter());
        assert!((0.97..0.99).contains(&scale.limit), "{}", scale.limit);
        assert!(scale.clipped() && scale.notes() == ["clipped at ±0.981", "largest: 3000"], "{:?}", scale.notes());
        assert_eq!(scale.colour(3000.0), scale.colour(scale.limit));
        // One value in three is not an outlier, and zeros need no clipping.
        assert!(!Scale::linear([1.0, 1.0, 100.0].into_iter()).clipped());
        assert_eq!(Scale::linear([0.0; 9].into_iter()).colour(0.0), Rgb(0xf7, 0xf7, 0xf7));
    }

    #[test]
    fn symlog_tells_small_values_apart_beside_giants() {
        let scale = Scale::symlog((0..100).map(|i| i as f32).chain([3000.0]));
        assert_eq!(scale.kind, Kind::SymLog { linear: 10.0 });
        let places: Vec<f32> = [0.0, 1.0, 10.0, 100.0, 3000.0].map(|v| scale.place(v)).to_vec();
        assert!(places.is_sorted() && places[1] > 0.02 && places[4] == 1.0, "{places:?}");
        assert_eq!(scale.place(-10.0), -places[2]);
        assert_eq!(scale.ticks(7), [-1000.0, -100.0, -10.0, 0.0, 10.0, 100.0, 1000.0]);
    }

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Scale::linear([18.3].into_iter());
        assert_eq!(scale.ticks(8), [-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0]);
        assert_eq!(Scale::share().ticks(5), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!([3041.0, 12.34, 1.5, 0.05, 1e-7, 0.0].map(number), ["3041", "12.3", "1.5", "0.05", "1.0e-7", "0"]);
    }
}
