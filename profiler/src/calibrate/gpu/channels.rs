//! Which copies share a channel, from what they leave one another.

/// Two devices share a channel where both at once move less than this part of what each moves alone. One
/// link for both leaves a half; host memory or the links between processors take some of it, too, yet
/// leave more.
const SHARED: f64 = 0.75;

/// Both directions of a device share a channel where their shares add up to no more than this: 1 is a
/// half-duplex link, 2 a full-duplex one. PCIe as measured on an A100 has 1.4.
const HALF_DUPLEX: f64 = 1.2;

/// What copies of one direction leave one another: `shares[from][to]` is what is left of the bandwidth of
/// `from` while `to` copies too; `None` where it was not measured.
pub(super) type Shares = Vec<Vec<Option<f64>>>;

/// What two devices move at once, over what they move alone one after the other.
pub(super) fn combined(alone: &[f64], shares: &Shares, one: usize, other: usize) -> Option<f64> {
    let (first, second) = (shares[one][other]?, shares[other][one]?);
    let total = alone[one] + alone[other];
    (total > 0.0).then(|| (first * alone[one] + second * alone[other]) / total)
}

/// Whether so much says that two devices share a channel.
pub(super) fn is_shared(combined: f64) -> bool {
    combined < SHARED
}

/// Whether a device's directions share a channel, by what each keeps while the other runs.
pub(super) fn is_half_duplex(offload: f64, reload: f64) -> bool {
    offload + reload <= HALF_DUPLEX
}

/// One direction of all devices: bandwidth alone, and what they leave one another.
#[derive(Debug, Clone)]
pub(super) struct Direction {
    pub(super) alone: Vec<f64>,
    pub(super) shares: Shares,
}

impl Direction {
    /// The pairs that share a channel; `expected` tells of those that there was no time to measure.
    fn pairs(&self, expected: &dyn Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
        let devices = self.alone.len();
        let all = (0..devices).flat_map(|one| (one + 1..devices).map(move |other| (one, other)));
        let shared = |&(one, other): &(usize, usize)| {
            combined(&self.alone, &self.shares, one, other).map_or_else(|| expected(one, other), is_shared)
        };
        all.filter(shared).collect()
    }
}

/// Channel of each device's offloads and of its reloads, numbered as in a problem: numbers are equal where
/// copies share a link. Whether two devices do, their copies tell, or, where these were not measured, `expected`.
pub(super) fn channels(
    offload: &Direction,
    reload: &Direction,
    half_duplex: &[bool],
    expected: &dyn Fn(usize, usize) -> bool,
) -> (Vec<usize>, Vec<usize>) {
    let devices = half_duplex.len();
    // The group of each copy: first all offloads, then all reloads.
    let mut group: Vec<usize> = (0..2 * devices).collect();
    let mut join = |one: usize, other: usize| {
        let (keep, lose) = (group[one].min(group[other]), group[one].max(group[other]));
        for member in &mut group {
            if *member == lose {
                *member = keep;
            }
        }
    };
    for (one, other) in offload.pairs(expected) {
        join(one, other);
    }
    for (one, other) in reload.pairs(expected) {
        join(devices + one, devices + other);
    }
    for (device, _) in half_duplex.iter().enumerate().filter(|(_, half)| **half) {
        join(device, devices + device);
    }
    // Numbered without gaps, in order of appearance.
    let mut seen = Vec::new();
    let numbered: Vec<usize> = group
        .into_iter()
        .map(|g| {
            seen.iter().position(|&s| s == g).unwrap_or_else(|| {
                seen.push(g);
                seen.len() - 1
            })
        })
        .collect();
    let (offload, reload) = numbered.split_at(devices);
    (offload.to_vec(), reload.to_vec())
}

/// The device that disturbs `device` most among those on other channels; the next one where none does.
pub(super) fn neighbour(device: usize, channel: &[usize], shares: &Shares) -> Option<usize> {
    let devices = channel.len();
    let others = (1..devices).map(|step| (device + step) % devices).filter(|&other| channel[other] != channel[device]);
    // The first of equal ones: differences of 2 % are noise.
    others.fold(None, |best: Option<usize>, other| match best {
        Some(chosen) if left(shares, device, other) + 0.02 >= left(shares, device, chosen) => best,
        _ => Some(other),
    })
}

fn left(shares: &Shares, device: usize, other: usize) -> f64 {
    shares[device][other].unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Devices with equal links: two of one group leave each other `left`, others everything.
    fn direction(groups: &[usize], left: f64) -> Direction {
        let share = |one: usize, other: usize| Some(if groups[one] == groups[other] { left } else { 0.98 });
        let devices = groups.len();
        let shares = (0..devices).map(|one| (0..devices).map(|other| share(one, other)).collect()).collect();
        Direction { alone: vec![25e9; devices], shares }
    }

    #[test]
    fn private_links_have_numbers_of_their_own() {
        let alone = direction(&[0, 1, 2], 1.0);
        assert_eq!(channels(&alone, &alone, &[false; 3], &|_, _| false), (vec![0, 1, 2], vec![3, 4, 5]));
    }

    #[test]
    fn what_was_not_measured_is_as_the_topology_has_it() {
        let mut some = direction(&[0, 0, 0], 0.5);
        some.shares[2] = vec![None; 3];
        let own = channels(&some, &some, &[false; 3], &|_, _| false);
        assert_eq!(own, (vec![0, 0, 1], vec![2, 2, 3]));
        assert_eq!(channels(&some, &some, &[false; 3], &|_, other| other == 2), (vec![0; 3], vec![1; 3]));
    }

    #[test]
    fn devices_behind_a_switch_share_a_number_in_each_direction() {
        let switch = direction(&[0, 0, 1, 1], 0.5);
        assert_eq!(channels(&switch, &switch, &[false; 4], &|_, _| false), (vec![0, 0, 1, 1], vec![2, 2, 3, 3]));
    }

    #[test]
    fn a_half_duplex_link_has_one_number_for_both_directions() {
        let own = direction(&[0, 1], 1.0);
        assert_eq!(channels(&own, &own, &[true, false], &|_, _| false), (vec![0, 1], vec![0, 2]));
        let switch = direction(&[0, 0], 0.5);
        assert_eq!(channels(&switch, &switch, &[true, true], &|_, _| false), (vec![0, 0], vec![0, 0]));
        assert!(is_half_duplex(0.5, 0.5) && !is_half_duplex(0.96, 0.44));
    }

    #[test]
    fn a_narrow_device_behind_the_switch_of_a_wide_one_is_found() {
        // Alone 25 and 12 GB/s, together 25: the wide one keeps 19 of its 25, the narrow one 6 of its 12.
        let both = Direction { alone: vec![25e9, 12e9], shares: vec![vec![None, Some(0.76)], vec![Some(0.5), None]] };
        assert_eq!(channels(&both, &both, &[false; 2], &|_, _| false).0, [0, 0]);
    }

    #[test]
    fn what_was_not_measured_joins_nothing() {
        let unknown = Direction { alone: vec![25e9; 2], shares: vec![vec![None; 2]; 2] };
        assert_eq!(channels(&unknown, &unknown, &[false; 2], &|_, _| false), (vec![0, 1], vec![2, 3]));
    }

    #[test]
    fn the_neighbour_is_the_worst_one_on_another_channel() {
        let mut switch = direction(&[0, 0, 1, 1], 0.5);
        let channel = [0, 0, 1, 1];
        assert_eq!(neighbour(0, &channel, &switch.shares), Some(2));
        assert_eq!(neighbour(3, &channel, &switch.shares), Some(0));
        switch.shares[0][3] = Some(0.8);
        assert_eq!(neighbour(0, &channel, &switch.shares), Some(3));
        assert_eq!(neighbour(0, &[0, 0], &switch.shares), None);
        assert_eq!(neighbour(0, &[0], &vec![vec![None]]), None);
    }
}
