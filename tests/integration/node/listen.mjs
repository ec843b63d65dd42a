// Prints what npm's `eventsource` receives from a URL: a line of JSON for each event.
import { EventSource } from 'eventsource'

const print = (line) => process.stdout.write(JSON.stringify(line) + '\n')
const source = new EventSource(process.argv[2])

for (const type of ['message', 'news', 'gap']) {
  source.addEventListener(type, (event) =>
    print({ type, id: event.lastEventId, data: event.data }))
}
source.addEventListener('open', () => print({ type: 'open' }))
source.addEventListener('error', () =>
  print({ type: source.readyState === EventSource.CLOSED ? 'gave up' : 'reconnecting' }))
