//! 0/1 quantities of a window's model, and sums of them.

use highs::Col;

/// A 0/1 quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lit {
    Never,
    Always,
    Is(Col),
    Not(Col),
}

impl Lit {
    /// Its value in a solution.
    pub(super) fn holds(self, values: &[f64]) -> bool {
        let value = |c: Col| values.get(c.index()).is_some_and(|&x| x > 0.5);
        match self {
            Lit::Never => false,
            Lit::Always => true,
            Lit::Is(c) => value(c),
            Lit::Not(c) => !value(c),
        }
    }

    pub(super) fn not(self) -> Lit {
        match self {
            Lit::Never => Lit::Always,
            Lit::Always => Lit::Never,
            Lit::Is(c) => Lit::Not(c),
            Lit::Not(c) => Lit::Is(c),
        }
    }

    pub(super) fn is_open(self) -> bool {
        matches!(self, Lit::Is(_) | Lit::Not(_))
    }
}

/// A sum under construction.
#[derive(Default)]
pub(super) struct Sum {
    pub(super) terms: Vec<(Col, f64)>,
    pub(super) constant: f64,
}

impl Sum {
    pub(super) fn col(mut self, factor: f64, col: Col) -> Sum {
        self.terms.push((col, factor));
        self
    }

    pub(super) fn lit(mut self, factor: f64, lit: Lit) -> Sum {
        match lit {
            Lit::Never => {}
            Lit::Always => self.constant += factor,
            Lit::Is(c) => self.terms.push((c, factor)),
            Lit::Not(c) => {
                self.constant += factor;
                self.terms.push((c, -factor));
            }
        }
        self
    }

    pub(super) fn add(mut self, constant: f64) -> Sum {
        self.constant += constant;
        self
    }
}
