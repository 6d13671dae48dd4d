//go:build linux

package daemontest

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// errEnded is the usual reason why nothing can arrive any more.
var errEnded = errors.New("nothing more can arrive")

// A record is a list that one goroutine adds to and that others read and wait
// for. It is as long as it needs to be: adding never blocks.
type record[T any] struct {
	mu     sync.Mutex
	items  []T
	ended  error         // nil: more may be added
	change chan struct{} // closed at the next change; nil: no one waits
}

// add appends items.
func (r *record[T]) add(items ...T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items = append(r.items, items...)
	r.changed()
}

// end says that nothing more will be added, and why, until it is called with
// nil. Of several reasons the first counts.
func (r *record[T]) end(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended == nil || why == nil {
		r.ended = why
	}
	r.changed()
}

func (r *record[T]) changed() {
	if r.change != nil {
		close(r.change)
		r.change = nil
	}
}

// all is a copy of what there is.
func (r *record[T]) all() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.items)
}

// hasEnded reports whether nothing more will be added.
func (r *record[T]) hasEnded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended != nil
}

// wait returns nil once found is true of the items. It returns what end was
// given if it is not and never will be, and the reason why ctx ended if that is
// earlier.
// What is there already is found even if ctx has ended. The record is locked
// while found runs.
func (r *record[T]) wait(ctx context.Context, found func([]T) bool) error {
	for {
		change, err := r.look(found)
		if change == nil {
			return err
		}
		select {
		case <-change:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// look returns a nil channel once there is nothing to wait for any more.
func (r *record[T]) look(found func([]T) bool) (<-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case found(r.items):
		return nil, nil
	case r.ended != nil:
		return nil, r.ended
	case r.change == nil:
		r.change = make(chan struct{})
	}
	return r.change, nil
}

// A transcript is a record of what has been written to it.
type transcript struct {
	record[byte]
}

func (t *transcript) Write(text []byte) (int, error) {
	t.add(text...)
	return len(text), nil
}
