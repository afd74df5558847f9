/**
 * Streams that are pushed into. How a runtime takes them is its own affair: this is the form of the web, which all of
 * them know; `runtime/streams.ts` has a shorter way for the one that offers it.
 */

/** Where the bytes go. */
export interface Sink {
  /** Takes them in any case. False: the client does not keep up, and `drained` says when it does again. */
  write(bytes: Uint8Array<ArrayBuffer>): boolean;
  /** Nothing is written afterwards. */
  end(): void;
}

/** Where they come from. None of these throws. */
export interface Pushing {
  /** Once, when there is somewhere to write to; at once or when the answer begins. */
  open(sink: Sink): void;
  drained(): void;
  /** The client went away. */
  gone(): void;
}

export type OpenStream = (source: Pushing) => ReadableStream<Uint8Array<ArrayBuffer>>;

export const webStream: OpenStream = (source) =>
  // Pulled one chunk at a time: what the client has not read stays in the bounded queue of the source.
  new ReadableStream<Uint8Array<ArrayBuffer>>({
    start: (controller) => source.open(new WebSink(controller)),
    pull: () => source.drained(),
    cancel: () => source.gone(),
  });

class WebSink implements Sink {
  readonly #controller: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>;

  constructor(controller: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>) {
    this.#controller = controller;
  }

  write(bytes: Uint8Array<ArrayBuffer>): boolean {
    try {
      this.#controller.enqueue(bytes);
    } catch {
      // The client went away in this moment: nobody is left to be told.
      return false;
    }
    return (this.#controller.desiredSize ?? 0) > 0;
  }

  end(): void {
    try {
      this.#controller.close();
    } catch {
      // As above.
    }
  }
}
