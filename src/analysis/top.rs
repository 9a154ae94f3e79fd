//! Selects the largest of many values, for tables, pictures, the report and the logit lens. Read next: `lens.rs`.

/// The indices of the `count` largest of `n` keys, largest first. Of equal keys, the smaller index is first. NaN counts
/// as larger than every number, so that it shows.
pub fn largest(n: usize, count: usize, key: impl Fn(usize) -> f32) -> Vec<u32> {
    // For few keys, maintain a sorted list of the largest so far, instead of storing all keys.
    const FEW: usize = 16;
    let before = |a: &u32, b: &u32| key(*b as usize).total_cmp(&key(*a as usize)).then(a.cmp(b));
    let count = count.min(n);
    if count > FEW {
        let mut places: Vec<u32> = (0..n as u32).collect();
        if count < n {
            places.select_nth_unstable_by(count, before);
            places.truncate(count);
        }
        places.sort_unstable_by(before);
        return places;
    }
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for place in 0..n {
        let of_place = key(place);
        let beaten = |other: &(u32, f32)| other.1.total_cmp(&of_place).is_lt();
        if best.len() < count || best.last().is_some_and(beaten) {
            best.insert(best.partition_point(|other| !beaten(other)), (place as u32, of_place));
            best.truncate(count);
        }
    }
    best.into_iter().map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_picked_alike() {
        let values: Vec<f32> = (0..200).map(|i| ((i * 37) % 23) as f32 - 11.0).collect();
        let mut sorted: Vec<u32> = (0..200).collect();
        sorted.sort_by(|a, b| values[*b as usize].abs().total_cmp(&values[*a as usize].abs()));
        for count in [0, 1, 5, 16, 17, 60, 199, 200, 300] {
            assert_eq!(largest(200, count, |i| values[i].abs()), sorted[..count.min(200)], "{count}");
        }
        for count in [1, 17] {
            let of: Vec<f32> = (0..30).map(|i| if i == 20 { f32::NAN } else { i as f32 }).collect();
            assert_eq!(largest(30, count, |i| of[i])[0], 20, "NaN is seen");
        }
    }
}
