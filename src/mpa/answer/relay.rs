//! Two stages at one model: what comes of a record in the first is asked about in the second while its picture is at hand, so that a model sees
//! it once.

use super::flow::Flow;
use crate::error::{Error, Result};
use crate::models::engine::{Exchange, Next};
use crate::models::generate::{Completion, Request};

pub(super) struct Relay<'a> {
    first: Flow<'a>,
    second: Flow<'a>,
    /// Of each request in the order in which they were given out: its stage, and which one of that stage's it is.
    routes: Vec<(Turn, usize)>,
    /// Requests given out for each stage.
    asked: [usize; 2],
    /// Requests of the first stage that are not answered.
    open: usize,
}

#[derive(Clone, Copy)]
enum Turn {
    First,
    Second,
}

impl<'a> Relay<'a> {
    pub fn new(first: Flow<'a>, second: Flow<'a>) -> Self {
        Relay { first: first.passing_on(), second, routes: Vec::new(), asked: [0; 2], open: 0 }
    }

    /// Whether there is anything to ask.
    pub fn has_requests(&mut self) -> Result<bool> {
        self.first.has_requests()
    }

    pub fn finish(self) -> Result<()> {
        self.first.finish()?;
        self.second.finish()
    }

    fn route(&mut self, turn: Turn, request: Request) -> Next {
        let asked = &mut self.asked[turn as usize];
        self.routes.push((turn, *asked));
        *asked += 1;
        Next::Request(request)
    }
}

impl Exchange for Relay<'_> {
    fn next(&mut self, wait: bool) -> Result<Next> {
        if let Some(request) = self.second.pop() {
            return Ok(self.route(Turn::Second, request));
        }
        match self.first.next(wait && self.open == 0)? {
            Next::Request(request) => {
                self.open += 1;
                Ok(self.route(Turn::First, request))
            }
            // What these answers bring is to come.
            Next::End if self.open > 0 => Ok(Next::Later),
            other => Ok(other),
        }
    }

    fn done(&mut self, index: usize, answer: Result<Vec<Completion>>) -> Result<()> {
        let Some(&(turn, index)) = self.routes.get(index) else {
            return Err(Error::op("generate", "answers to requests only", format!("one to request {index}")));
        };
        match turn {
            Turn::Second => self.second.done(index, answer),
            Turn::First => {
                self.open -= 1;
                self.first.done(index, answer)?;
                self.first.passed().try_for_each(|passed| self.second.ask(passed))
            }
        }
    }
}
